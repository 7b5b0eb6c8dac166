"""Stage 2, Support-Query Matching: the augmented copies nearest to each query slice."""

import numpy as np
import torch

from fsmis.errors import UserError
from fsmis.matchers.base import Matcher, Slices
from fsmis.matchers.images import fitted

# Distances closer than this fraction of a row's largest differ by floating-point rounding alone; so
# do squared distances of float32 vectors below its square, where all copies equal the query.
ROUNDING = 1e-6


def match(matcher: Matcher[Slices], queries: Slices, support: Slices, k: int = 1) -> np.ndarray:
    """Indices of the k nearest support copies of every query slice.

    Args:
        matcher: the distance.
        queries: S query slices: images float32 ``[S, H, W]`` in [0, 1], or their features where
            ``matcher.on_features``.
        support: N support copies likewise, the original first. Query slices of another size are
            resized to theirs where the matcher does not bring all images to one size itself.
        k: copies for each query slice.

    Returns:
        int64 ``[S, k]``, nearest last; see :func:`nearest` for ties.

    Raises:
        UserError: no slices, fewer copies than k, images not finite or outside [0, 1], distances
            not finite.
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
    return nearest(matcher.distance(queries), k)


def nearest(distances: torch.Tensor, k: int = 1) -> np.ndarray:
    """Columns of the k smallest values of every row of ``[S, N]``, int64 ``[S, k]``, nearest last.

    Of columns that are equal up to floating-point rounding, the lowest is the nearest: the same on
    every machine.

    Raises:
        UserError: not 1 <= k <= N, or NaN or infinite values.
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
