"""What the pipeline asks of a video model, encode, memorise, segment; what the model answers; parts
of its masks.

Any class with these three calls is a segmenter, chosen by the ``_target_`` of a file in
``conf/segmenter``; ``tests/segmenters/test_contract.py`` holds the engines to the contract.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from scipy.ndimage import distance_transform_edt, generate_binary_structure, label
from scipy.special import expit

from fsmis.errors import UserError

if TYPE_CHECKING:  # they load torch, which takes seconds that not all runs need
    from fsmis.segmenters.features import Features, Memory


@runtime_checkable
class Segmenter(Protocol):
    """A model that carries the masks of some images over to others.

    Rows are independent: what a call gives for a row depends on that row of its arguments alone, up
    to rounding, and never on earlier calls. Features and memories are the model's own business;
    others only index and join them, except that some methods, a matcher and the extent stage
    compare ``Features.levels``, one or more, float ``[B, C, h, w]`` from fine to coarse.

    Attributes:
        batch_size: rows, (query slice, organ) pairs, that the pipeline passes at a time; 1 or more.
    """

    batch_size: int

    def encode(self, images: np.ndarray) -> Features:
        """Features of B images; the pipeline passes each of its images once.

        Args:
            images: float32 ``[B, H, W]`` in [0, 1], B at least 1, of any H and W.
        """
        ...

    def memorise(self, features: Features, masks: np.ndarray, labelled: bool = True) -> Memory:
        """Memories of what masks show on images, B rows.

        Args:
            features: of the images, B rows.
            masks: bool ``[B, H, W]`` at the size of the images. An empty one means that the object
                is not there, and a mask of a single pixel is not empty.
            labelled: the masks are labels, which may prompt again in other runs, so that their
                memories are worth keeping; else predictions.
        """
        ...

    def segment(self, features: Features, memories: list[Memory], size: tuple[int, int]) -> Answer:
        """Masks of B images that follow the memories, as frames of a video follow one another.

        Args:
            features: of the images, B rows.
            memories: one or more, the nearest last, each with B rows: row i of every memory belongs
                to image i.
            size: (H, W) of the logits.

        Returns:
            B rows on the CPU: float32 logits ``[B, H, W]`` above 0 in the object, float32 object
            scores ``[B]`` above 0 where it is in the image, float32 predicted IoU ``[B]`` in
            [0, 1]; all finite.
        """
        ...


@runtime_checkable
class Tracker(Segmenter, Protocol):
    """A segmenter that also goes through a video frame by frame, as ``sam2_volume``, ``fate_sam``
    and ``fs_medsam2`` ask it to."""

    def track(
        self,
        features: Features,
        support: list[Memory],
        past: list[Memory],
        num_frames: int,
        size: tuple[int, int],
    ) -> tuple[Answer, Memory]:
        """Segment the next frame of B videos, and memorise what was found on it.

        Args:
            features: of the next frames, B rows, each of another video.
            support: memories of the prompted frames that open the videos, each with B rows.
            past: what earlier calls made of the frames between, in order, each with B rows.
            num_frames: of a whole video, which may scale how the model encodes time.
            size: (H, W) of the logits.

        Returns:
            The answer of B rows, as of ``segment``, and the memory of the frames.
        """
        ...


def unable(segmenter: object, ability: str) -> UserError:
    """The error of a method whose segmenter lacks an ability, such as "track"."""
    return UserError(
        f"this method needs a segmenter that can {ability}, and {type(segmenter).__name__} cannot; "
        "choose segmenter=sam2_mini, or another method"
    )


@dataclass(frozen=True, eq=False)
class Answer:
    """Masks of R frames, indexable along R, and how sure the model is of them.

    Attributes:
        logits: float32 ``[R, H, W]``, foreground above 0 if the object is in the frame.
        object_score: float32 ``[R]``, above 0 where it is; minus infinity in frames that are
            excluded: nobody is to ask about them again.
        iou: float32 ``[R]`` in [0, 1], predicted overlap of the mask with the true one.
    """

    logits: np.ndarray
    object_score: np.ndarray
    iou: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Whether the object is in the frame, bool ``[R]``."""
        return self.object_score > 0

    @property
    def excluded(self) -> np.ndarray:
        """Frames that were ruled out, bool ``[R]``."""
        return np.isneginf(self.object_score)

    @property
    def masks(self) -> np.ndarray:
        """Bool ``[R, H, W]``, empty where the object is not in the frame."""
        return (self.logits > 0) & self.present[:, None, None]

    @property
    def certainty(self) -> np.ndarray:
        """Mean probability of each mask's pixels, float ``[R]``; 0 where it is empty."""
        masks = self.masks
        total = np.where(masks, expit(self.logits), 0).sum(axis=(1, 2))
        return total / np.maximum(1, masks.sum(axis=(1, 2)))

    @property
    def gated(self) -> np.ndarray:
        """Logits as SAM2 gives them: its own "no object" in every pixel of a frame without."""
        return np.where(self.present[:, None, None], self.logits, np.float32(NO_OBJECT))

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: np.ndarray | slice | list[int]) -> Answer:
        return Answer(*(getattr(self, field.name)[rows] for field in fields(self)))

    def with_rows(self, rows: np.ndarray, other: Answer) -> Answer:
        """This answer with those rows taken from another, which holds no others."""
        new = {field.name: getattr(self, field.name).copy() for field in fields(self)}
        for name, values in new.items():
            values[rows] = getattr(other, name)
        return replace(self, **new)

    def without(self, pixels: np.ndarray) -> Answer:
        """The answer without some pixels of its masks, bool ``[R, H, W]``: the logits change their
        sign."""
        return replace(self, logits=np.where(pixels, -self.logits, self.logits))

    @staticmethod
    def cat(parts: list[Answer]) -> Answer:
        """Join answers along R."""
        return Answer(
            *(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Answer))
        )


NO_OBJECT = -1024.0  # SAM2's own logit for "the object is not in this frame"
TOUCHING = generate_binary_structure(3, 3)  # voxels that share a corner: 26 neighbours
INTACT = 0.97  # share of itself that a labelled organ keeps when what leaks out is cut off
FINER = 0.8  # factor of the passage that is cut, where it keeps less


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
