"""The support aligned with the query: its scale in the slices, its place along the body.

Not part of the paper: neither headers nor patients guarantee a scale, and no protocol tells the
place in a volume of one's own.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.pipeline.prompting import single_support
from fsmis.pipeline.zoom import Crops
from fsmis.segmenters.base import Answer, Segmenter
from fsmis.segmenters.features import Features, batches


class ScaleSearch:
    """Segments a few query slices with the support at several scales, about the centres of its
    slices, and keeps that of the best predicted overlap; ``found`` is the last episode's.

    Args:
        scales: factors of the support's size, tried besides 1; empty turns the search off.
        slices: query slices to try for each organ, spread over its task.
        margin: by how much the score of a scale must exceed that of 1 to be chosen.
    """

    def __init__(self, scales: list[float], slices: int, margin: float) -> None:
        if any(not 0.1 <= scale <= 10 for scale in scales) or slices < 1 or not margin >= 0:
            raise UserError(
                f"method.scale.scales={list(scales)}, slices={slices}, margin={margin}: choose "
                "scales from 0.1 to 10, slices from 1, margin from 0"
            )
        self.scales = list(scales)
        self.slices = slices
        self.margin = margin
        self.found = 1.0

    def search(self, segmenter: Segmenter, episode: Episode) -> Episode:
        """The episode with its support at the best scale; unchanged where that is 1."""
        self.found = 1.0
        if not self.scales or not episode.organs:
            return episode
        few = _some_slices(episode, self.slices)
        scores = {}
        for scale in (1.0, *(s for s in self.scales if s != 1)):
            answers = single_support(segmenter, scaled(few, scale)).values()
            scores[scale] = float(np.mean([_score(answer) for answer in answers]))
        best = max(scores, key=lambda scale: scores[scale])
        if scores[best] > scores[1.0] + self.margin:
            self.found = best
        return scaled(episode, self.found)


def _score(answer: Answer) -> float:
    """Mean predicted overlap of the better half of the slices, since some may lack the organ."""
    iou = np.sort(answer.iou * answer.present)
    return float(iou[len(iou) // 2 :].mean())


def scaled(episode: Episode, scale: float) -> Episode:
    """The episode with its support slices enlarged about their centres, as though the support's
    spacing were this much larger than its header says."""
    if scale == 1:
        return episode
    height, width = episode.support.image.shape[1:]
    slices = episode.support_slices
    middle = np.tile([height / 2, width / 2], (len(slices), 1))
    crops = Crops(middle, np.array([height, width]) / scale, (height, width))
    image = np.zeros_like(episode.support.image)
    image[slices] = crops.cut(episode.support.image[slices], crops.shape)
    organs = {}
    for organ, task in episode.organs.items():
        of_task = crops[np.searchsorted(slices, task.support_slices)]
        masks = of_task.cut_masks(task.support_masks, crops.shape)
        organs[organ] = replace(task, support_masks=masks)
    support = replace(episode.support, id=f"{episode.support.id} x{scale:g}", image=image)
    return replace(episode, support=support, organs=organs)


def _some_slices(episode: Episode, count: int) -> Episode:
    rows = {}
    for organ, task in episode.organs.items():
        spread = np.linspace(0, len(task.query_slices) - 1, count + 2).round().astype(int)
        spread = np.unique(spread)
        rows[organ] = spread[1:-1] if len(spread) > 2 else spread
    return episode.asking(rows)


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

    Whole slices are compared, not the organ: neighbouring organs and the outline of the body tell
    the height, also where the organ itself is not found.

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
