"""Coarse to fine: the method asked again on crops around what its first pass found.

Not part of the paper. Small and thin organs cover few of the network's pixels; a crop gives them
more. Support and query are cut to the same side in mm, so that both show the organ alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import median_filter

from fsmis.data.dataset import Scan, scale_intensities
from fsmis.data.protocol import Episode, OrganTask
from fsmis.errors import UserError
from fsmis.pipeline.alignment import Crops, place_in_body
from fsmis.pipeline.masks import boxes, extent, largest_component
from fsmis.segmenters import NO_OBJECT, Answer

Answers = dict[str, Answer]
Ask = Callable[[Episode], Answers]
Part = Callable[[OrganTask, Answer], np.ndarray]


@dataclass(frozen=True, eq=False)
class ZoomedEpisode:
    """An episode cut around some of its organs.

    Attributes:
        episode: its scans are crops, at the slice positions of the whole ones; slices that no task
            names are blank.
        slices: positions of the query slices, int ``[S]`` ascending.
        crops: where they were cut.
    """

    episode: Episode
    slices: np.ndarray
    crops: Crops


class Zoom:
    """Passes over crops, each around what the pass before it found.

    Args:
        passes: how many; 0 turns it off.
        factor: side of a crop, times the organ's largest extent in support and query.
        share: organs share their crops, and so the encoder's passes, where the common extent is at
            most this many times that of each; 1: none do.
        size: rows and columns of a crop.
        percentiles: of each crop; become 0 and 1. None keeps the intensities of the volume.
        magnified: from this magnification on, side of the slice over that of the crop, the crop's
            answer replaces the one before; below, its share in the logits falls in proportion. 0:
            it always replaces it.
        wide: side of the crop that is tried, if it is less than a whole slice, around the place
            that an organ in doubt has in the body, times its labelled extent; of the two answers,
            that of which the model is surer stays.
        doubt: mean predicted overlap below which an organ is in doubt; 0: none ever.

    Raises:
        UserError: a setting out of its range.
    """

    def __init__(
        self,
        passes: int,
        factor: float,
        share: float,
        size: int,
        percentiles: tuple[float, float] | None,
        magnified: float,
        wide: float,
        doubt: float,
    ) -> None:
        if not isinstance(passes, int) or passes < 0:
            raise UserError(f"method.zoom.passes={passes}: must be a whole number, 0 or more")
        if not factor >= 1 or not share >= 1 or not magnified >= 0 or size < 32:
            raise UserError(
                f"method.zoom.factor={factor}, share={share}, magnified={magnified}, size={size}: "
                "choose factor and share from 1, magnified from 0, size from 32"
            )
        if not wide >= factor or not 0 <= doubt <= 1:
            raise UserError(
                f"method.zoom.wide={wide}, doubt={doubt}: choose wide from factor={factor} and "
                "doubt from 0 to 1"
            )
        self.passes = passes
        self.factor = factor
        self.share = share
        self.size = size
        self.percentiles = percentiles
        self.magnified = magnified
        self.wide = wide
        self.doubt = doubt

    def refine(self, episode: Episode, answers: Answers, answer: Ask, part: Part) -> Answers:
        """The answers after the passes; an organ that is found nowhere keeps its own.

        Args:
            episode: whole slices.
            answers: what the first pass found on them.
            answer: the method, asked on whole slices or on crops.
            part: of the masks of an organ, bool ``[S, H, W]``, that crops are cut around.
        """
        if not self.passes:
            return answers
        asked = {organ: np.flatnonzero(~answers[organ].excluded) for organ in episode.organs}
        episode = episode.asking(asked)
        answers = dict(answers)
        for organ, rows in asked.items():
            before = answers[organ][rows]
            surer = self.where_expected(episode, organ, before, answer)
            if surer is not before:
                answers[organ] = answers[organ].with_rows(rows, surer)
        for _ in range(self.passes):
            kept = {organ: answers[organ][rows] for organ, rows in asked.items()}
            found = {o: part(episode.organs[o], a) for o, a in kept.items() if a.masks.any()}
            for organs in self._groups(episode, found):
                zoomed = self.cut(episode, {organ: found[organ] for organ in organs})
                for organ, closer in answer(zoomed.episode).items():
                    merged = self._merge(zoomed, organ, kept[organ], closer)
                    answers[organ] = answers[organ].with_rows(asked[organ], merged)
        return answers

    def cut(self, episode: Episode, found: Mapping[str, np.ndarray]) -> ZoomedEpisode:
        """The episode around some of its organs.

        Args:
            episode: whole slices.
            found: organ -> bool ``[S, H, W]`` of the slices of its task, not all empty.
        """
        tasks = {organ: episode.organs[organ] for organ in found}
        slices, on_query = _together(tasks, found)
        labelled = _labelled(tasks, episode.support)
        side = self.factor * max(
            extent(on_query, episode.query), extent(labelled[1], episode.support)
        )
        crops = _around(on_query, side, episode.query, steady=True)
        return self._cut(episode, tasks, (slices, crops), labelled, side)

    def where_expected(self, episode: Episode, organ: str, found: Answer, answer: Ask) -> Answer:
        """What the method finds of a small organ around its place in the body, if it doubts what it
        found and is surer then; else ``found``, whose rows are the slices of the organ's task."""
        task = episode.organs[organ]
        if not len(found) or not _overlap(found) < self.doubt:
            return found
        labelled = _labelled({organ: task}, episode.support)
        side = self.wide * extent(labelled[1], episode.support)
        shape = episode.query.image.shape[1:]
        centres = np.tile(place_in_body(episode, labelled[1]), (len(found), 1))
        crops = Crops(centres, side / np.array(episode.query.spacing[1:]), shape)
        if crops.magnification <= 1:
            return found
        zoomed = self._cut(episode, {organ: task}, (task.query_slices, crops), labelled, side)
        closer = answer(zoomed.episode)[organ]
        if _overlap(closer) <= _overlap(found):
            return found
        logits, inside = crops.put_back(closer.logits)
        return replace(closer, logits=np.where(inside, logits, NO_OBJECT))

    def _cut(
        self,
        episode: Episode,
        tasks: Mapping[str, OrganTask],
        cut: tuple[np.ndarray, Crops],
        labelled: tuple[np.ndarray, np.ndarray],
        side: float,
    ) -> ZoomedEpisode:
        (slices, query_crops), (supports, on_support) = cut, labelled
        support_crops = _around(on_support, side, episode.support, steady=False)

        def masks_of(task: OrganTask) -> np.ndarray:
            rows = np.searchsorted(supports, task.support_slices)
            return support_crops[rows].cut_masks(task.support_masks, (self.size, self.size))

        zoomed = replace(
            episode,
            support=self._cut_scan(episode.support, supports, support_crops, side, tasks),
            query=self._cut_scan(episode.query, slices, query_crops, side, tasks),
            organs={o: replace(task, support_masks=masks_of(task)) for o, task in tasks.items()},
        )
        return ZoomedEpisode(zoomed, slices, query_crops)

    def _cut_scan(
        self, scan: Scan, slices: np.ndarray, crops: Crops, side: float, organs: Mapping
    ) -> Scan:
        closer = crops.cut(scan.image[slices], (self.size, self.size))
        if self.percentiles is not None:
            closer = np.stack([scale_intensities(crop, self.percentiles) for crop in closer])
        image = np.zeros((len(scan.image), self.size, self.size), np.float32)
        image[slices] = closer
        pixel = side / self.size
        name = f"{scan.id} around {'+'.join(organs)}"
        return replace(scan, id=name, image=image, spacing=(scan.spacing[0], pixel, pixel))

    def _groups(self, episode: Episode, found: Mapping[str, np.ndarray]) -> list[list[str]]:
        """Organs that share crops, in the order of the episode within each group."""
        extents = {organ: extent(masks, episode.query) for organ, masks in found.items()}
        groups: list[list[str]] = []
        for organ in sorted(found, key=lambda organ: -extents[organ]):
            for group in groups:
                together = [*group, organ]
                common = extent(_union(episode, found, together), episode.query)
                if common <= self.share * min(extents[member] for member in together):
                    group.append(organ)
                    break
            else:
                groups.append([organ])
        order = list(episode.organs)
        return [sorted(group, key=order.index) for group in groups]

    def _merge(self, zoomed: ZoomedEpisode, organ: str, before: Answer, closer: Answer) -> Answer:
        task = zoomed.episode.organs[organ]
        rows = np.searchsorted(zoomed.slices, task.query_slices)
        logits, inside = zoomed.crops[rows].put_back(closer.logits)
        part = min(1.0, zoomed.crops.magnification / self.magnified) if self.magnified else 1.0
        return Answer(
            before.logits + part * inside * (logits - before.logits),
            before.object_score + part * (closer.object_score - before.object_score),
            before.iou + part * (closer.iou - before.iou),
        )


def _together(
    tasks: Mapping[str, OrganTask], found: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the query slices of some tasks, int ``[S]`` ascending, and bool ``[S, H, W]``,
    what was found of any of their organs."""
    slices = np.unique(np.concatenate([task.query_slices for task in tasks.values()]))
    masks = np.zeros((len(slices), *next(iter(found.values())).shape[1:]), bool)
    for organ, task in tasks.items():
        masks[np.searchsorted(slices, task.query_slices)] |= found[organ]
    return slices, masks


def _overlap(answer: Answer) -> float:
    """Mean predicted overlap, 0 in the slices where nothing was found."""
    return float((answer.iou * answer.present).mean())


def _labelled(tasks: Mapping[str, OrganTask], support: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the support slices of some tasks, int ``[P]`` ascending, and bool ``[P, H, W]``,
    the largest part of what is labelled there of each organ: stray pixels would make a window as
    wide as the body."""
    slices = np.unique(np.concatenate([task.support_slices for task in tasks.values()]))
    masks = np.zeros((len(slices), *support.image.shape[1:]), bool)
    for task in tasks.values():
        parts = np.stack([largest_component(mask[None])[0] for mask in task.support_masks])
        masks[np.searchsorted(slices, task.support_slices)] |= parts
    return slices, masks


def _union(episode: Episode, found: Mapping[str, np.ndarray], organs: list[str]) -> np.ndarray:
    """Masks bool ``[S, H, W]`` of organs together, in the slices that are asked of all of them or,
    where there are none, of any."""
    tasks = {organ: episode.organs[organ] for organ in organs}
    slices, union = _together(tasks, found)
    common = np.all([np.isin(slices, task.query_slices) for task in tasks.values()], axis=0)
    return union[common] if common.any() else union


def _around(masks: np.ndarray, side: float, scan: Scan, steady: bool) -> Crops:
    """Windows of a side in mm around masks ``[N, H, W]`` in slices that follow one another.

    If ``steady``, a slice whose mask lies off its neighbours' by more than a quarter of the side,
    and one whose mask is empty, is cut where they are.
    """
    centres = boxes(masks)[0]
    sides = side / np.array(scan.spacing[1:])
    rows = np.arange(len(masks))
    if steady:
        known = ~np.isnan(centres[:, 0])
        typical = median_filter(centres[known], size=(5, 1), mode="nearest")
        known[known] = (np.abs(centres[known] - typical) <= sides / 4).all(axis=1)
        for axis in (0, 1):
            centres[:, axis] = np.interp(rows, rows[known], centres[known, axis])
    return Crops(centres, sides, (masks.shape[1], masks.shape[2]))
