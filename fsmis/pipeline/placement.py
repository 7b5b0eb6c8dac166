"""Where the slices of the support's volume lie in the query's: the two moved along each other.

Not part of the paper. The whole slices are compared, not the organ: neighbouring organs and the
outline of the body tell the height, also where the organ itself is not found.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from fsmis.data.protocol import Episode
from fsmis.segmenters.base import Segmenter
from fsmis.segmenters.features import Features, batches

GRID = 6  # cells along each side of a slice, whose mean features describe it
STRETCHES = (0.93, 1.0, 1.07)  # of the support along z, for bodies of other lengths
STEP = 0.5  # query slices between two shifts that are tried
OVERLAP = 0.6  # least share of the shorter volume that the two have in common
FEWEST = 3  # slices, below which there is nothing to move along
DOUBT = 0.3  # standard errors taken off a mean cosine: of a short overlap it may be high by chance


def descriptors(features: Features) -> np.ndarray:
    """What tells slices apart: features of the coarsest level averaged over a grid, ``[B, D]``."""
    return F.adaptive_avg_pool2d(features.levels[-1].float(), GRID).flatten(1).cpu().numpy()


def place_support(
    segmenter: Segmenter, episode: Episode, query: Iterable[Features]
) -> np.ndarray | None:
    """:func:`places` of an episode, whose support is encoded whole; None where the support's slices
    do not follow one another.

    Args:
        segmenter: encodes the support.
        episode: its query slices follow one another.
        query: features of all query slices, in portions.
    """
    if not np.isfinite(episode.support.spacing[0]):
        return None
    portions = batches(episode.support.image, segmenter.batch_size)
    support = np.concatenate([descriptors(segmenter.encode(some)) for some in portions])
    ratio = episode.support.spacing[0] / episode.query.spacing[0]
    return places(support, np.concatenate([descriptors(some) for some in query]), ratio)


def places(support: np.ndarray, query: np.ndarray, ratio: float) -> np.ndarray | None:
    """Position of every support slice in the query, float ``[S]``, maybe beyond its ends.

    The stretch and the shift are taken for which slices at the same place are most alike: the mean
    cosine of their descriptors, from which the mean of their volume was subtracted.

    Args:
        support: :func:`descriptors` ``[S, D]`` of all slices of the support.
        query: the same ``[Q, D]`` of the query.
        ratio: slice distance of the support over that of the query.

    Returns:
        None where a volume is too short to be placed.
    """
    if min(len(support), len(query)) < FEWEST:
        return None
    # without its own mean, a volume says what changes along it, and not whose body it is
    of_support, of_query = (torch.as_tensor(all_ - all_.mean(axis=0)) for all_ in (support, query))
    alike = torch.cosine_similarity(of_support[:, None], of_query[None], dim=2).numpy()
    rows = np.arange(len(support))
    best, found = -np.inf, None
    for stretch in STRETCHES:
        slope = ratio * stretch
        fewest = max(FEWEST, OVERLAP * min(len(support), len(query) / slope))
        for shift in np.arange(-slope * len(support), len(query), STEP):
            at = slope * rows + shift
            inside = (at >= 0) & (at <= len(query) - 1)
            if inside.sum() < fewest:
                continue
            below = np.minimum(at[inside].astype(int), len(query) - 2)
            part = at[inside] - below
            there = rows[inside]
            cosine = (1 - part) * alike[there, below] + part * alike[there, below + 1]
            score = cosine.mean() - DOUBT * cosine.std() / np.sqrt(len(cosine))
            if score > best:
                best, found = score, at
    return found
