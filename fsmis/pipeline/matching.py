"""Stage 2, Support-Query Matching: the copies nearest to each query slice, by any distance; that of
features is here, those of images are in ``distances``."""

import hashlib
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fsmis.errors import UserError
from fsmis.segmenters.features import Features

# What a matcher reads: images float32 [B, H, W] in [0, 1], or the segmenter's features of B images.
Slices = TypeVar("Slices", np.ndarray, Features)


class Matcher(ABC, Generic[Slices]):
    """Distance between every query slice and every support copy; lower is nearer.

    ``fit`` keeps what is needed of the copies, so that every image passes through a network once.

        from fsmis import Matcher
        class Mean(Matcher):  # fit(support [N, H, W]) keeps what distance(queries [S, H, W])
            ...  # compares with, and returns float [S, N]

    Attributes:
        on_features: compares the segmenter's features instead of images, so that features that
            exist already are reused.
        image_size: side in pixels to which the matcher resizes images; None where copies and
            queries must have one size.
    """

    on_features: ClassVar[bool] = False
    image_size: int | None = None

    @abstractmethod
    def fit(self, support: Slices) -> None:
        """Remember the N support copies."""

    @abstractmethod
    def distance(self, queries: Slices) -> torch.Tensor:
        """Distances float ``[S, N]`` of S query slices to the copies."""


def to_tensor(images: np.ndarray, image_size: int | None) -> Tensor:
    """Images ``[B, H, W]`` as a float32 tensor, resized to a square of ``image_size`` pixels
    (bilinear, antialiased) unless that is None."""
    from torchvision.transforms.v2.functional import resize  # slow to load, and not always used

    pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    return pixels if image_size is None else resize(pixels, [image_size, image_size])


def fitted(images: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Images float32 ``[B, H, W]``, resized likewise to ``size`` (H, W) where theirs differs."""
    from torchvision.transforms.v2.functional import resize

    return images if images.shape[1:] == size else resize(to_tensor(images, None), size).numpy()


# Distances closer than this fraction of a row's largest differ by floating-point rounding alone; so
# do squared distances of float32 vectors below its square, where all copies equal the query.
ROUNDING = 1e-6


def match(matcher: Matcher[Slices], queries: Slices, support: Slices, k: int = 1) -> np.ndarray:
    """Indices of the k nearest support copies of every query slice, int64 ``[S, k]``, nearest last.

    Args and errors as :func:`distances_of`; UserError also for fewer copies than k, or distances
    that are not finite.
    """
    return nearest(distances_of(matcher, queries, support), k)


def distances_of(matcher: Matcher[Slices], queries: Slices, support: Slices) -> torch.Tensor:
    """The distance of every query slice to every support copy, ``[S, N]``.

    Args:
        queries: S query slices: images float32 ``[S, H, W]`` in [0, 1], or their features where
            ``matcher.on_features``.
        support: N support copies likewise, the original first. Unless the matcher resizes images
            itself, query slices of another size are resized to theirs.

    Raises UserError for no slices, or images that are not finite and in [0, 1].
    """
    for name, slices in (("support", support), ("query", queries)):
        if not len(slices):
            raise UserError(f"matching needs at least one {name} slice, got none")
        if isinstance(slices, np.ndarray):
            _check_images(name, slices)
    if (
        isinstance(queries, np.ndarray)
        and isinstance(support, np.ndarray)
        and matcher.image_size is None
    ):
        queries = fitted(queries, support.shape[1:])
    matcher.fit(support)
    return matcher.distance(queries)


def nearest(distances: torch.Tensor, k: int = 1) -> np.ndarray:
    """Columns of the k smallest values of every row of ``[S, N]``, int64 ``[S, k]``, nearest last.

    Columns that are equal up to floating-point rounding count as ties, and the lowest is the
    nearest: the same on every machine. Raises UserError unless 1 <= k <= N and all is finite.
    """
    values = distances.detach().cpu().numpy().astype(np.float64)
    if not 1 <= k <= values.shape[1]:
        raise UserError(
            f"the {k} nearest of {values.shape[1]} support copies asked for; set method.memories "
            "from 1 to the size of the support set"
        )
    if not np.isfinite(values).all():
        query, copy = np.argwhere(~np.isfinite(values))[0]
        raise UserError(
            f"the distance of query slice {query} to support copy {copy} is {values[query, copy]}; "
            "look for NaN in the images or the matcher's weights"
        )
    slack = ROUNDING * np.abs(values).max(axis=1, keepdims=True) + ROUNDING**2
    chosen = []
    for _ in range(k):
        first = (values <= values.min(axis=1, keepdims=True) + slack).argmax(axis=1)
        values[np.arange(len(values)), first] = np.inf
        chosen.append(first)
    return np.stack(chosen[::-1], axis=1)


def _check_images(name: str, images: np.ndarray) -> None:
    if not np.isfinite(images).all() or images.min() < 0 or images.max() > 1:
        raise UserError(
            f"matching: {name} images must be finite and scaled to [0, 1], got values from "
            f"{images.min()} to {images.max()}"
        )


class FeatureMatcher(Matcher[Slices]):
    """One vector for each image, one matrix product for all S x N pairs.

    The vectors of the fewer, copies or queries, are kept (F float32 each), the others streamed in
    batches, so that memory does not grow with the support set.

    Attributes:
        images_encoded: images whose vectors were computed, over all calls.
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
        """``vectors``, counted in ``images_encoded``."""
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

    In float32, |a|^2 + |b|^2 - 2 a.b loses near-duplicates to cancellation; float64 keeps them,
    ``columns`` features at a time to bound memory.
    """
    if queries.device.type == "mps":  # which has no float64
        queries, copies = queries.cpu(), copies.cpu()
    total = torch.zeros(len(queries), len(copies), dtype=torch.float64, device=queries.device)
    for a, b in zip(queries.split(columns, 1), copies.split(columns, 1), strict=True):
        a, b = a.double(), b.double()
        total += a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return total.clamp_(min=0)


class Random(Matcher[np.ndarray]):
    """Distances drawn uniformly from [0, 1); a query's depend only on its pixels and the seed."""

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


class EncoderFeatures(FeatureMatcher[Features]):
    """Mean over positions of 1 - cosine of two images' feature vectors, in [0, 2].

    ``level`` is an index into ``Features.levels``; -1 is the coarsest, the image embedding. Raises
    UserError where the segmenter has no such level.
    """

    on_features = True

    def __init__(self, level: int, batch_size: int):
        super().__init__(batch_size)
        self.level = level

    def vectors(self, slices: Features) -> Tensor:
        """Unit feature vectors of all positions, ``[B, C x h x w]``, scaled so that the squared
        distance is the mean of 1 - cosine."""
        levels = len(slices.levels)
        if not -levels <= self.level < levels:
            raise UserError(
                f"matcher.level={self.level}; the segmenter has {levels} levels, use -{levels} to "
                f"{levels - 1}"
            )
        maps = torch.nn.functional.normalize(slices.levels[self.level].float())
        positions = maps[0, 0].numel()
        return maps.flatten(1) * (0.5 / positions) ** 0.5
