"""Matchers whose distance is the squared Euclidean distance of feature vectors, image by image."""

from abc import abstractmethod

import torch
from torch import Tensor

from fsmis.errors import UserError
from fsmis.matchers.base import Matcher, Slices


class FeatureMatcher(Matcher[Slices]):
    """One vector an image, one matrix product for all S x N pairs.

    The vectors of the fewer, copies or queries, are kept (F float32 each), those of the others
    streamed, ``batch_size`` images at a time: memory does not grow with the size of a support set.

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

    def encode(self, slices: Slices) -> Tensor:
        """The same, counted."""
        self.images_encoded += len(slices)
        return self.vectors(slices)

    def fit(self, support: Slices) -> None:
        self._support: Slices = support

    @torch.inference_mode()
    def distance(self, queries: Slices) -> Tensor:
        if len(queries) > len(self._support):
            return self._pairs(self._support, queries).T
        return self._pairs(queries, self._support)

    def _pairs(self, kept: Slices, streamed: Slices) -> Tensor:
        """Squared distances ``[len(kept), len(streamed)]``."""
        # Joining parts would hold them twice.
        vectors = torch.empty(0)
        for start in range(0, len(kept), self.batch_size):
            batch = self.encode(kept[start : start + self.batch_size])
            if not start:
                vectors = batch.new_empty(len(kept), batch.shape[1])
            vectors[start : start + self.batch_size] = batch
        columns = [
            squared_distances(vectors, self.encode(streamed[start : start + self.batch_size]))
            for start in range(0, len(streamed), self.batch_size)
        ]
        return torch.cat(columns, dim=1)


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
