"""Masks as organs are: in one piece, none over another, ending where the image has an edge.

None of it is part of the paper.
"""

import numpy as np
from scipy.ndimage import (
    binary_dilation,
    distance_transform_edt,
    find_objects,
    generate_binary_structure,
    label,
)
from scipy.special import expit
from skimage.segmentation import random_walker

from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.segmenters import Answer

TOUCHING = generate_binary_structure(3, 3)  # voxels that share a corner: 26 neighbours
INTACT = 0.97  # share of itself that a labelled organ keeps when what leaks out is cut off
FINER = 0.8  # factor of the passage that is cut, where it keeps less
# A pixel too much costs a large mask little, one too few a small mask much; and the overlap that
# the model predicts is higher for large ones.
FAVOUR = 0.25


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
    labelled organ whole. Not part of the paper.

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


def apart(episode: Episode, answers: dict[str, Answer], by_presence: bool) -> dict[str, Answer]:
    """Answers whose masks do not overlap, as labels never do: a pixel that several claim belongs to
    the strongest.

    A claim is the pixel's probability times the mask's predicted overlap, over its area to the
    power of ``FAVOUR``; if ``by_presence``, times its object score: in a whole volume, whose slices
    may lack an organ, and of crops, where it is surer than on whole slices. Not part of the paper;
    SAM2's predictor has it as ``non_overlap_masks``, by logits alone.
    """
    strongest = np.zeros(episode.query.image.shape, np.float32)
    claims = {}
    for organ, answer in answers.items():
        masks, slices = answer.masks, episode.organs[organ].query_slices
        areas = np.maximum(1, masks.sum(axis=(1, 2)))
        weights = answer.iou / areas**FAVOUR
        if by_presence:
            weights = weights * np.maximum(0, answer.object_score)
        claim = masks * expit(answer.logits) * weights[:, None, None]
        claims[organ] = claim.astype(np.float32)  # as the strongest, which they are compared with
        strongest[slices] = np.maximum(strongest[slices], claims[organ])
    settled = {}
    for organ, answer in answers.items():
        lost = answer.masks & (claims[organ] < strongest[episode.organs[organ].query_slices])
        settled[organ] = answer.without(lost)
    return settled


class Borders:
    """Draws the borders of organs anew along the edges that the image has there.

    A video model answers at a quarter of its input's resolution, so that a border lies a pixel or
    two beside the edge that it means. What is farther inside and outside are the seeds of a random
    walk (Grady, IEEE TPAMI 2006), in which all organs of a slice take part.

    Args:
        width: pixels on each side of a border that are decided anew; of a thin organ, half its
            depth. 0: none.
        beta: how much a difference in grey value, over the deviation around the organs, stops the
            walk.

    Raises:
        UserError: a setting out of its range.
    """

    def __init__(self, width: float, beta: float) -> None:
        if not width >= 0 or not beta > 0:
            raise UserError(
                f"method.borders.width={width}, beta={beta}: choose width from 0, beta above 0"
            )
        self.width = width
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
        slices = {organ: episode.organs[organ].query_slices for organ in masks}
        volumes = {organ: np.zeros(episode.query.image.shape, bool) for organ in masks}
        for organ, mask in masks.items():
            volumes[organ][slices[organ]] = mask
        for z, image in enumerate(episode.query.image):
            shown = [volume[z] for volume in volumes.values() if volume[z].any()]
            for group in [shown] if together and shown else [[mask] for mask in shown]:
                for mask, redrawn in zip(group, self._walk(image, group), strict=True):
                    mask[:] = redrawn
        return {organ: volume[slices[organ]] for organ, volume in volumes.items()}

    def _walk(self, image: np.ndarray, masks: list[np.ndarray]) -> list[np.ndarray]:
        """Masks bool ``[H, W]`` of some organs in a slice, none of them empty, redrawn."""
        if any(mask.all() for mask in masks):
            return masks
        seeds = np.zeros(image.shape, np.uint8)
        beyond = np.ones(image.shape, bool)
        for number, mask in enumerate(masks, 1):
            inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
            width = min(self.width, inside.max() / 2)
            seeds[inside > width] = number
            beyond &= outside > width
        seeds[beyond] = len(masks) + 1
        around = find_objects(binary_dilation(~beyond, iterations=2).astype(int))[0]
        grey, sown = image[around].astype(float), seeds[around]
        if sown.all() or not grey.std():
            return masks
        seeds[around] = random_walker(grey / grey.std(), sown, self.beta, mode="bf")
        return [seeds == number for number in range(1, len(masks) + 1)]
