"""Which slices of a whole volume hold the organ: found, where the protocol does not tell.

Not part of the paper, whose protocol segments the organ's own slices alone. Slices that hold the
organ follow one another, near the place that the labelled slice has in the query; masks do not jump
from one of them to the next; the model believes its masks there more than elsewhere, what they hold
looks more like the labelled organ, and no other organ claims it.
Nothing has to be calibrated: these cues, each against its spread within the volume, are added up,
and the run of slices is kept that stands out most. It is settled twice: the organ looks more like
itself in the other slices of the first run than like the labelled organ of another patient.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import binary_dilation

from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.pipeline.masks import without_leaks
from fsmis.segmenters import Answer
from fsmis.segmenters.features import Features, masked_average, on_grid

LEVELS = (-1, -2)  # of the features that are compared, the coarsest first, as far as there are
HIGHEST = 0.999  # cosine that is told apart from 1
STEADY = 0.2  # as far as masks of neighbouring slices lie apart in any organ

Looks = list[np.ndarray]  # of R masks, float [R, C] for each of L levels


class Extent:
    """Keeps one run of slices of each organ.

    Args:
        when: ``whole_volume``, for episodes that ask for every slice of the query, or ``never``.
        gap: least difference of the mean predicted overlap between slices kept and ruled out; where
            it is smaller, the organ goes through the whole volume.
        place: weight of being near the labelled slice's place in the query, against the other
            cues together; 0: it is not looked for.
        near: mm from there that weigh as much as one deviation of the other cues; what is kept
            begins at most half of it away.
        far: mm from which on slices are equally far.
        jump: how much a mask that lies elsewhere than that of the next slice counts against keeping
            both, as a share of the cues' variance; 0: not at all.
        margin: slices taken in at each end, where organs fade out, as a share of what stands out,
            rounded up; 0: none.

    Raises:
        UserError: a setting out of its range.
    """

    def __init__(
        self,
        when: str,
        gap: float,
        place: float,
        near: float,
        far: float,
        jump: float,
        margin: float,
    ) -> None:
        if when not in ("whole_volume", "never"):
            raise UserError(f"method.extent.when={when}: choose whole_volume or never")
        if not 0 <= gap <= 1:
            raise UserError(f"method.extent.gap={gap}: must be in [0, 1]")
        if min(place, jump, margin) < 0 or not 0 < near <= far:
            raise UserError(
                f"method.extent.place={place}, jump={jump}, margin={margin}, near={near}, "
                f"far={far}: choose place, jump and margin from 0, near above 0 and far from near"
            )
        self.when = when
        self.gap = gap
        self.place = place
        self.near = near
        self.far = far
        self.jump = jump
        self.margin = margin

    def applies(self, episode: Episode) -> bool:
        """Whether the episode's query slices are to be narrowed down."""
        return self.when == "whole_volume" and episode.whole_volume

    def held(
        self,
        cues: np.ndarray,
        found: np.ndarray,
        away: np.ndarray | None = None,
        jumps: np.ndarray | None = None,
        between: np.ndarray | None = None,
    ) -> np.ndarray:
        """Which slices of a volume hold the organ, bool ``[S]``.

        Args:
            cues: ``[S, C]``, larger where the organ is, the predicted overlap first.
            found: bool ``[S]``, slices with a mask; the others are never kept.
            away: mm of the slices from where the labelled ones lie, ``[S]``; None: not known.
            jumps: ``[S - 1]`` of :func:`jumps_between`; None: there is none.
            between: bool ``[S]``, slices that lie between labelled ones and so hold it; None: none.
        """
        if not found.any():
            return found
        filled = np.where(found[:, None], cues, cues[found].min(axis=0))
        values, within = _standardised(filled).sum(axis=1), None
        if away is not None:
            values -= self.place * cues.shape[1] * np.minimum(away, self.far) / self.near
            within = away <= self.near / 2
        breaks = None if jumps is None else self.jump * values.var() * jumps
        kept = standing_out(values, within, breaks, between)
        overlap = filled[:, 0]
        if not kept.all() and overlap[kept].mean() - overlap[~kept].mean() < self.gap:
            kept[:] = True  # nothing tells its ends apart from its middle: it goes through
        taken_in = math.ceil(self.margin * np.count_nonzero(kept))
        if taken_in:
            kept = binary_dilation(kept, iterations=taken_in)
        return kept & found

    def limit(
        self,
        episode: Episode,
        answer: Answer,
        seen: Looks,
        labelled: Looks,
        places: np.ndarray | None,
        narrowest: float | None,
    ) -> Answer:
        """The answer with the slices beyond each organ's extent excluded.

        Args:
            episode: its tasks' slices are the rows, in order.
            answer: R rows.
            seen: what their masks hold.
            labelled: what the labels that prompt them hold.
            places: position of every support slice in the query; None: not known.
            narrowest: of an organ that ends, keep no slice beyond its largest part, see
                :func:`without_leaks`; pixels count the less, the farther they are from the labelled
                slice's place. None: all parts are kept.
        """
        score, start = answer.object_score.copy(), 0
        sure = np.column_stack([answer.iou, answer.object_score])
        if len(episode.organs) > 1:
            lost = claimed_by_others(answer.logits, answer.iou, len(episode.organs))
            sure = np.column_stack([sure, -lost])
        for task in episode.organs.values():
            rows = np.arange(start, start + len(task.query_slices))
            start += len(rows)
            masks = answer.logits[rows] > 0
            found = np.asarray(masks.any(axis=(1, 2)))
            if not found.any():  # nothing to rule out, and zoom may find it
                continue
            away = between = None
            if places is not None:
                of_labels = places[task.support_slices]
                before = of_labels.min() - task.query_slices
                behind = task.query_slices - of_labels.max()
                away = np.maximum(0, np.maximum(before, behind)) * episode.query.spacing[0]
                between = (before < 0) & (behind < 0)
            near = None if away is None else np.exp(-away / self.near)
            jumps = jumps_between(masks)
            here, reference = [look[rows] for look in seen], [look[rows] for look in labelled]
            for _ in range(2):
                cues = np.column_stack([sure[rows], likeness(here, reference)])
                held = self.held(cues, found, away, jumps, between)
                if narrowest is not None and (found & ~held).any():
                    of_run = masks & held[:, None, None]
                    part = without_leaks(of_run, near, task.support_masks, narrowest)
                    held &= part.any(axis=(1, 2))
                if np.count_nonzero(held) < 2:
                    break  # a single slice has no others to be compared with
                reference = of_the_others(here, held * answer.iou[rows])
            score[rows[~held]] = -np.inf
        return replace(answer, object_score=score)


def looks(features: Features, masks: np.ndarray) -> Looks:
    """What masks bool ``[R, H, W]`` hold on R images: the mean features under them, at two levels
    where there are; 0 where one is empty."""
    means = []
    for level in LEVELS[: len(features.levels)]:
        maps = features.levels[level].float()
        weights = on_grid(torch.as_tensor(masks, device=maps.device), maps.shape[-2:])
        means.append(masked_average(maps, weights).cpu().numpy())
    return means


def joined(parts: list[Looks]) -> Looks:
    """Looks of some rows after those of others."""
    return [np.concatenate(level) for level in zip(*parts, strict=True)]


def of_the_others(seen: Looks, weights: np.ndarray) -> Looks:
    """What the other rows hold together, each as much as it weighs, ``[R]``; up to a factor, which
    no cosine notices."""
    weighted = [weights[:, None] * look for look in seen]
    return [look.sum(axis=0) - look for look in weighted]


def likeness(some: Looks, others: Looks) -> np.ndarray:
    """How much R rows look like R others, float ``[R, L]``: cosines, spread out where they crowd
    below 1 by the inverse hyperbolic tangent."""
    cosines = [
        torch.cosine_similarity(torch.from_numpy(one), torch.from_numpy(other), dim=1).numpy()
        for one, other in zip(some, others, strict=True)
    ]
    return np.arctanh(np.clip(np.stack(cosines, axis=1), -HIGHEST, HIGHEST))


def claimed_by_others(logits: np.ndarray, overlap: np.ndarray, organs: int) -> np.ndarray:
    """Share of each mask that lies in a mask of another organ with a higher predicted overlap,
    float ``[R]`` in [0, 1]; 0 for empty ones.

    Args:
        logits: ``[R, H, W]``, the same slices of one organ after the other.
        overlap: predicted, ``[R]``.
        organs: how many there are.
    """
    of_slices = overlap.reshape(organs, -1)
    share = np.zeros(of_slices.shape)
    for z, sure in enumerate(of_slices.T):
        masks = logits[z :: len(of_slices.T)] > 0
        surest = np.where(masks, sure[:, None, None], -np.inf).max(axis=0)
        lost = masks & (surest > sure[:, None, None])
        share[:, z] = lost.sum(axis=(1, 2)) / np.maximum(1, masks.sum(axis=(1, 2)))
    return share.ravel()


def jumps_between(masks: np.ndarray) -> np.ndarray:
    """How far each mask of bool ``[S, H, W]`` lies from the next, float ``[S - 1]`` in [0, 1 -
    ``STEADY``]: the distance of their centres over the side of a square as large as the smaller,
    at most 1, and what is above ``STEADY``; the most where one is empty."""
    areas = masks.sum(axis=(1, 2))
    centres = np.array([np.argwhere(mask).mean(axis=0) if mask.any() else [0, 0] for mask in masks])
    smaller = np.minimum(areas[:-1], areas[1:])
    distance = np.linalg.norm(np.diff(centres, axis=0), axis=1) / np.sqrt(np.maximum(1, smaller))
    distance[smaller == 0] = 1
    return np.clip(distance, STEADY, 1) - STEADY


def standing_out(
    values: np.ndarray,
    within: np.ndarray | None = None,
    breaks: np.ndarray | None = None,
    whole: np.ndarray | None = None,
) -> np.ndarray:
    """The run of values that stands out most from the rest, bool ``[S]``; all where none does.

    Its mean is higher and the variance between the two the largest: Otsu's criterion, over runs in
    place of thresholds.

    Args:
        values: ``[S]``.
        within: bool ``[S]``, of which the run has to hold one, where there is one.
        breaks: ``[S - 1]``, what the variance loses for holding two neighbours both; None: nothing.
        whole: bool ``[S]``, of which the run has to hold all; None: nothing.
    """
    n = len(values)
    sums = np.concatenate([[0.0], np.cumsum(values - values.mean())])
    start, end = np.triu_indices(n + 1, 1)
    length, total = end - start, sums[end] - sums[start]
    inside = (length < n) & (total > 1e-9)
    if within is not None and within.any():
        counts = np.concatenate([[0], np.cumsum(within)])
        inside &= counts[end] > counts[start]
    if whole is not None:
        counts = np.concatenate([[0], np.cumsum(whole)])
        inside &= counts[end] - counts[start] == counts[-1]
    if not inside.any():
        return np.ones(n, bool)
    between = total**2 / np.maximum(1, length * (n - length))
    if breaks is not None:
        lost = np.concatenate([[0.0], np.cumsum(breaks)])
        between = between - (lost[end - 1] - lost[start])
    between = np.where(inside, between, -np.inf)
    best = between.argmax()
    kept = np.zeros(n, bool)
    kept[start[best] : end[best]] = True
    return kept


def _standardised(cues: np.ndarray) -> np.ndarray:
    """Each column of ``[S, C]`` with mean 0 and deviation 1, its lowest twentieth cut off, so that
    a slice gone wrong does not stand out by itself."""
    cut = np.maximum(cues, np.quantile(cues, 0.05, axis=0))
    return (cut - cut.mean(axis=0)) / np.maximum(cut.std(axis=0), 1e-6)
