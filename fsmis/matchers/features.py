"""Matchers whose distance is the squared Euclidean distance of feature vectors, image by image."""

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from fsmis.matchers.base import Matcher


class FeatureMatcher(Matcher):
    """One feature vector an image, one matrix product for all S x N pairs.

    Copies are kept (N x F float32), queries are streamed, both ``batch_size`` images at a time.

    Attributes:
        images_encoded: images whose features were computed, counted over all calls.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.images_encoded = 0

    @abstractmethod
    def features(self, images: np.ndarray) -> Tensor:
        """Feature vectors float32 ``[B, F]`` of images float32 ``[B, H, W]`` in [0, 1]."""

    @torch.inference_mode()
    def fit(self, support_images: np.ndarray) -> None:
        self._keep(torch.cat([self._encode(batch) for batch in self._batches(support_images)]))

    @torch.inference_mode()
    def distance(self, query_images: np.ndarray) -> Tensor:
        return torch.cat(
            [self._to_copies(self._encode(batch)) for batch in self._batches(query_images)]
        )

    def _batches(self, images: np.ndarray) -> list[np.ndarray]:
        return [images[i : i + self.batch_size] for i in range(0, len(images), self.batch_size)]

    def _encode(self, images: np.ndarray) -> Tensor:
        self.images_encoded += len(images)
        return self.features(images)

    def _keep(self, copies: Tensor) -> None:
        self._centre = copies.mean(dim=0)
        self._copies = copies - self._centre

    def _to_copies(self, queries: Tensor) -> Tensor:
        return squared_distances(queries - self._centre, self._copies)


def squared_distances(queries: Tensor, copies: Tensor, columns: int = 8192) -> Tensor:
    """Squared Euclidean distances float64 ``[S, N]`` of the rows of ``[S, F]`` and ``[N, F]``.

    |a|^2 + |b|^2 - 2 a.b cancels badly between near-duplicates; centred features and float64,
    ``columns`` at a time to bound memory, keep the relative error near that of the features.
    """
    if queries.device.type == "mps":  # which has no float64
        queries, copies = queries.cpu(), copies.cpu()
    total = torch.zeros(len(queries), len(copies), dtype=torch.float64, device=queries.device)
    for a, b in zip(queries.split(columns, 1), copies.split(columns, 1), strict=True):
        a, b = a.double(), b.double()
        total += a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return total.clamp_(min=0)
