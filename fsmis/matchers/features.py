"""Matchers whose distance is the squared Euclidean distance of feature vectors, image by image."""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from fsmis.errors import UserError
from fsmis.matchers.base import Matcher, Slices


class FeatureMatcher(Matcher[Slices]):
    """One vector an image, one matrix product for all S x N pairs.

    Copies are kept (N x F float32), queries are streamed, both ``batch_size`` images at a time.

    Attributes:
        images_encoded: images whose vectors were computed, counted over all calls.
    """

    def __init__(self, batch_size: int):
        if batch_size < 1:
            raise UserError(f"matcher.batch_size={batch_size}: choose 1 or more")
        self.batch_size = batch_size
        self.images_encoded = 0

    @abstractmethod
    def vectors(self, slices: Slices) -> Tensor:
        """Vectors float32 ``[B, F]`` of B images."""

    @torch.inference_mode()
    def fit(self, support: Slices) -> None:
        self._copies = torch.cat(list(self._encode(support)))

    @torch.inference_mode()
    def distance(self, queries: Slices) -> Tensor:
        batches = self._encode(queries)
        return torch.cat([squared_distances(batch, self._copies) for batch in batches])

    def _encode(self, slices: Slices) -> Iterator[Tensor]:
        for start in range(0, len(slices), self.batch_size):
            batch = slices[start : start + self.batch_size]
            self.images_encoded += len(batch)
            yield self.vectors(batch)


def squared_distances(queries: Tensor, copies: Tensor, columns: int = 8192) -> Tensor:
    """Squared Euclidean distances float64 ``[S, N]`` of the rows of ``[S, F]`` and ``[N, F]``.

    |a|^2 + |b|^2 - 2 a.b loses near-duplicates to cancellation in float32; float64 keeps them,
    ``columns`` features at a time to bound memory.
    """
    if queries.device.type == "mps":  # which has no float64
        queries, copies = queries.cpu(), copies.cpu()
    total = torch.zeros(len(queries), len(copies), dtype=torch.float64, device=queries.device)
    for a, b in zip(queries.split(columns, 1), copies.split(columns, 1), strict=True):
        a, b = a.double(), b.double()
        total += a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return total.clamp_(min=0)
