"""Stage 2, Support-Query Matching: the augmented copy nearest to each query slice."""

import numpy as np
import torch

from fsmis.errors import UserError
from fsmis.matchers.base import Matcher

# Distances closer than this fraction of a row's largest differ by floating-point rounding alone.
ROUNDING = 1e-6


def match(matcher: Matcher, query_images: np.ndarray, support_images: np.ndarray) -> np.ndarray:
    """Index of the nearest support copy of every query slice.

    Args:
        matcher: the distance.
        query_images: float32 ``[S, H, W]`` in [0, 1].
        support_images: float32 ``[N, H, W]`` in [0, 1], the original first.

    Returns:
        int64 ``[S]``; see :func:`nearest` for ties.

    Raises:
        UserError: no copies, images not finite or outside [0, 1], distances not finite.
    """
    for name, images in (("support", support_images), ("query", query_images)):
        if not len(images):
            raise UserError(f"matching needs at least one {name} image, got none")
        if not np.isfinite(images).all() or images.min() < 0 or images.max() > 1:
            raise UserError(
                f"matching: {name} images must be finite and scaled to [0, 1], got values from "
                f"{images.min()} to {images.max()}"
            )
    matcher.fit(support_images)
    return nearest(matcher.distance(query_images))


def nearest(distances: torch.Tensor) -> np.ndarray:
    """Column of the smallest value of every row of ``[S, N]``, int64 ``[S]``.

    Among equal columns, up to floating-point rounding, the lowest wins: the same on every machine.

    Raises:
        UserError: no columns, or NaN or infinite values.
    """
    values = distances.detach().double().cpu().numpy()
    if not values.shape[1]:
        raise UserError("matching needs at least one support image, got none")
    if not np.isfinite(values).all():
        query, copy = np.argwhere(~np.isfinite(values))[0]
        raise UserError(
            f"the distance of query slice {query} to support copy {copy} is {values[query, copy]}; "
            "look for NaN in the images or the matcher's weights"
        )
    slack = ROUNDING * np.abs(values).max(axis=1, keepdims=True)
    return (values <= values.min(axis=1, keepdims=True) + slack).argmax(axis=1)
