"""What the pipeline asks of a video model, encode, memorise, segment, and what the model answers.

Any class with these three calls is a segmenter, chosen by the ``_target_`` of a file in
``conf/segmenter``; ``tests/segmenters/test_contract.py`` holds the engines to the contract.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
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
