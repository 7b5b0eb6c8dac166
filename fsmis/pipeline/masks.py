"""Masks as organs are: in one piece, of one grey value, ending where the image has an edge.

None of it is part of the paper.
"""

import math
from itertools import pairwise

import numpy as np
from scipy.ndimage import (
    binary_dilation,
    distance_transform_edt,
    find_objects,
    generate_binary_structure,
    label,
)
from scipy.stats import median_abs_deviation
from skimage.segmentation import random_walker

from fsmis.data.dataset import Scan
from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.segmenters import Answer

TOUCHING = generate_binary_structure(3, 3)  # voxels that share a corner: 26 neighbours
INTACT = 0.97  # share of itself that a labelled organ keeps when what leaks out is cut off
FINER = 0.8  # factor of the passage that is cut, where it keeps less
SUREST = 1 / 3  # share of the slices that tell an organ's grey value
AIR = 0.1  # of the intensity range; what is darker tells nothing of a slice's brightness


def boxes(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres and extents (y, x), float ``[N, 2]`` each in pixels, of masks bool ``[N, H, W]``; NaN
    for empty ones."""
    centres = np.full((len(masks), 2), np.nan)
    extents = np.full((len(masks), 2), np.nan)
    for row, mask in enumerate(masks):
        for axis in (0, 1):
            filled = np.flatnonzero(mask.any(axis=1 - axis))
            if len(filled):
                low, high = filled[0], filled[-1] + 1
                centres[row, axis], extents[row, axis] = (low + high) / 2, high - low
    return centres, extents


def extent(masks: np.ndarray, scan: Scan) -> float:
    """The largest extent in mm, along y or x, of masks ``[N, H, W]`` in all but the largest tenth
    of the slices that are not empty, so that a slice gone wrong does not decide; 0 if all are."""
    extents = (boxes(masks)[1] * scan.spacing[1:]).max(axis=1)
    extents = extents[~np.isnan(extents)]
    return float(np.quantile(extents, 0.9)) if len(extents) else 0.0


def largest_component(mask: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The largest part of a mask bool ``[S, H, W]``; of equal ones the first, of none none.

    Pixels count as much as their slice weighs, ``weights`` ``[S]``, 0 or more; None: all the same.
    Slices that follow one another in the stack touch, even where the protocol leaves out slices
    between them: such a gap does not cut an organ in two.
    """
    parts, count = label(mask, TOUCHING)
    if not count:
        return np.zeros_like(mask)
    of_pixels = None if weights is None else np.repeat(weights, mask[0].size)
    sizes = np.bincount(parts.ravel(), of_pixels)[1:]  # without the background
    return parts == 1 + sizes.argmax()


def without_leaks(
    masks: np.ndarray, weights: np.ndarray | None, labelled: np.ndarray, narrowest: float
) -> np.ndarray:
    """The largest part of an organ's masks; what a narrow passage joins to it is another part.

    A mask that leaks into a neighbour does so through a gap in the border between them. Passages
    narrower than ``narrowest`` times the organ's thickness are cut, as far as that leaves the
    labelled organ whole.

    Args:
        masks: bool ``[S, H, W]``, slices that follow one another.
        weights: of the slices, ``[S]``, 0 or more, by which parts are compared; None: all the same.
        labelled: bool ``[P, H, W]``, the organ in support slices.
        narrowest: share of the thickness, which is twice the distance of the innermost pixel from
            the edge, in all but the thickest tenth of the slices; 0: nothing is cut.
    """
    if not (narrowest and masks.any()):
        return largest_component(masks, weights)
    depth = _depth(masks)
    deepest = depth.max(axis=(1, 2))
    passage = narrowest * float(np.quantile(deepest[deepest > 0], 0.9))
    wholes = [largest_component(mask[None]) for mask in labelled]
    depths = [_depth(whole) for whole in wholes]
    while passage >= 1 and any(
        _wide_part(whole, of_whole, None, passage).sum() < INTACT * whole.sum()
        for whole, of_whole in zip(wholes, depths, strict=True)
    ):
        passage *= FINER
    return _wide_part(masks, depth, weights, passage)


def _depth(masks: np.ndarray) -> np.ndarray:
    """Distance in pixels of those of a mask ``[S, H, W]`` from its edge in their slice."""
    edged = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    return np.stack([distance_transform_edt(mask)[1:-1, 1:-1] for mask in edged])


def _wide_part(
    masks: np.ndarray, depth: np.ndarray, weights: np.ndarray | None, passage: float
) -> np.ndarray:
    """The largest part of the pixels deeper than ``passage``, what of the mask lies around it, and
    what goes on from there where the organ tapers off."""
    deep = depth > passage
    if passage < 1 or not deep.any():  # no passage is less than a pixel wide
        return largest_component(masks, weights)
    core = largest_component(deep, weights)
    slices = np.flatnonzero(core.any(axis=(1, 2))).tolist()
    kept = np.zeros_like(masks)
    for z in slices:
        kept[z] = masks[z] & (distance_transform_edt(~core[z]) <= passage + 1)
    for last, step, end in ((slices[0], -1, 0), (slices[-1], 1, len(masks) - 1)):
        for z in range(last, end, step):
            beyond = z + step
            parts, _ = label(masks[beyond])
            touching = np.unique(parts[kept[z] & masks[beyond]])
            tip = np.isin(parts, touching) & masks[beyond]
            if not 0 < tip.sum() <= kept[z].sum():
                break
            kept[beyond] = tip
    return kept


class Greys:
    """Ends an organ in a whole volume where its masks turn to another grey value.

    Where a mask goes on from a kidney into liver, spleen or muscle, the model may be as sure of it
    as of the kidney. Slices are compared after what makes one as a whole brighter than the next is
    taken off.

    Args:
        deviations: of the grey values in the slices of which the model is surest, by which the
            median of another slice may differ; 0: any.
        least: what counts as a deviation if that is less, as a share of the intensity range.

    Raises:
        UserError: a setting out of its range.
    """

    def __init__(self, deviations: float, least: float) -> None:
        if not deviations >= 0 or not least > 0:
            raise UserError(
                f"method.greys.deviations={deviations}, least={least}: choose deviations from 0, "
                "least above 0"
            )
        self.deviations = deviations
        self.least = least

    def cut(
        self, episode: Episode, masks: dict[str, np.ndarray], answers: dict[str, Answer]
    ) -> dict[str, np.ndarray]:
        """Each organ's masks, bool ``[S, H, W]``, without the slices of another grey value.

        Args:
            episode: its query's image holds the grey values.
            masks: what was found in the slices of each organ's task.
            answers: where it comes from; tell how sure the model is of a slice.
        """
        if not self.deviations:
            return masks
        image = evened(episode.query.image)
        cut = {}
        for organ, mask in masks.items():
            alike = self._alike(image[episode.organs[organ].query_slices], mask, answers[organ].iou)
            cut[organ] = mask & alike[:, None, None]
        return cut

    def _alike(self, image: np.ndarray, mask: np.ndarray, sure: np.ndarray) -> np.ndarray:
        """Slices ``[S]`` whose mask has the organ's grey value, or is empty."""
        alike, shown = np.ones(len(mask), bool), np.flatnonzero(mask.any(axis=(1, 2)))
        if not len(shown):
            return alike
        surest = shown[np.argsort(-sure[shown], kind="stable")[: math.ceil(SUREST * len(shown))]]
        inside = image[surest][mask[surest]]
        allowed = self.deviations * max(self.least, median_abs_deviation(inside, scale="normal"))
        medians = np.array([np.median(image[z][mask[z]]) for z in shown])
        alike[shown] = abs(medians - np.median(inside)) <= allowed
        return alike


def evened(image: np.ndarray) -> np.ndarray:
    """A volume ``[Z, H, W]`` in [0, 1] without what makes one slice as a whole brighter than the
    next: the median ratio of the pixels that are no air in both."""
    steps = [0.0]
    for before, after in pairwise(image):
        body = (before > AIR) & (after > AIR)
        steps.append(float(np.median(np.log(after[body] / before[body]))) if body.any() else 0.0)
    gains = np.cumsum(steps)
    return image / np.exp(gains - np.median(gains))[:, None, None]


class Borders:
    """Draws the borders of organs anew along the edges that the image has there.

    A video model answers at a quarter of its input's resolution, so that a border lies a little
    beside the edge that it means. What is farther inside and outside are the seeds of a random walk
    (Grady, IEEE TPAMI 2006), in which all organs of a slice take part.

    Args:
        width: mm on each side of a border that are decided anew; half its depth, where an organ is
            thin. 0: none.
        share: of the organ's extent, which the width does not exceed.
        beta: how much a difference in grey value, over the deviation around the organs, stops the
            walk.

    Raises:
        UserError: a setting out of its range.
    """

    def __init__(self, width: float, share: float, beta: float) -> None:
        if not width >= 0 or not share > 0 or not beta > 0:
            raise UserError(
                f"method.borders.width={width}, share={share}, beta={beta}: choose width from 0, "
                "share and beta above 0"
            )
        self.width = width
        self.share = share
        self.beta = beta

    def redraw(
        self, episode: Episode, masks: dict[str, np.ndarray], together: bool
    ) -> dict[str, np.ndarray]:
        """Masks bool ``[S, H, W]`` of the slices of each organ's task, their borders redrawn.

        Args:
            episode: its query's image holds the edges.
            masks: what was found; none over another, if ``together``.
            together: all organs of a slice walk at once; else each by itself.
        """
        if not self.width:
            return masks
        query, slices = episode.query, {o: episode.organs[o].query_slices for o in masks}
        volumes = {organ: np.zeros(query.image.shape, bool) for organ in masks}
        widths = {}
        for organ, mask in masks.items():
            volumes[organ][slices[organ]] = mask
            widths[organ] = min(self.width, self.share * extent(mask, query)) / query.spacing[1]
        for z, image in enumerate(query.image):
            shown = [organ for organ, volume in volumes.items() if volume[z].any()]
            for group in [shown] if together and shown else [[organ] for organ in shown]:
                found = {organ: volumes[organ][z] for organ in group}
                for organ, redrawn in self._walk(image, found, widths).items():
                    volumes[organ][z] = redrawn
        return {organ: volume[slices[organ]] for organ, volume in volumes.items()}

    def _walk(
        self, image: np.ndarray, masks: dict[str, np.ndarray], widths: dict[str, float]
    ) -> dict[str, np.ndarray]:
        """Masks bool ``[H, W]`` of some organs in a slice, none of them empty, redrawn within
        widths in pixels."""
        if any(mask.all() for mask in masks.values()):
            return masks
        seeds = np.zeros(image.shape, np.uint8)
        beyond = np.ones(image.shape, bool)
        for number, (organ, mask) in enumerate(masks.items(), 1):
            inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
            width = min(widths[organ], inside.max() / 2)
            seeds[inside > width] = number
            beyond &= outside > width
        seeds[beyond] = len(masks) + 1
        around = find_objects(binary_dilation(~beyond, iterations=2).astype(int))[0]
        grey, sown = image[around].astype(float), seeds[around]
        if sown.all() or not grey.std():
            return masks
        seeds[around] = random_walker(grey / grey.std(), sown, self.beta, mode="bf")
        return {organ: seeds == number for number, organ in enumerate(masks, 1)}
