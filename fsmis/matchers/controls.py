"""Controls that do not look for a similar copy: what matching gains is measured against them."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from fsmis.matchers.base import Matcher


class Random(Matcher[np.ndarray]):
    """Distances drawn uniformly from [0, 1); a query's depend on its pixels and the seed alone,
    not on the order of calls."""

    def __init__(self, seed: int):
        self.seed = seed

    def fit(self, support: np.ndarray) -> None:
        self._n_copies = len(support)

    def distance(self, queries: np.ndarray) -> Tensor:
        rows = [self._generator(image).random(self._n_copies) for image in queries]
        return torch.from_numpy(np.stack(rows))

    def _generator(self, image: np.ndarray) -> np.random.Generator:
        pixels = np.ascontiguousarray(image, dtype=np.float32).tobytes()
        digest = hashlib.sha256(f"{self.seed}/".encode() + pixels).digest()
        return np.random.default_rng(int.from_bytes(digest, "big"))


class Identity(Matcher[np.ndarray]):
    """Distance 0 to the original, 1 to every augmented copy: always the original."""

    def fit(self, support: np.ndarray) -> None:
        self._row = (torch.arange(len(support)) > 0).float()

    def distance(self, queries: np.ndarray) -> Tensor:
        return self._row.expand(len(queries), -1)
