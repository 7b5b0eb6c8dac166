"""What the pipeline asks of a video model: encode an image, memorise (image, mask), segment.

Any class with these three calls is a segmenter, chosen by the ``_target_`` of a file in
``conf/segmenter``; ``tests/segmenters/test_contract.py`` holds the engines to the contract.
"""

from typing import Protocol, runtime_checkable

import numpy as np

from fsmis.errors import UserError
from fsmis.segmenters.answer import Answer
from fsmis.segmenters.features import Features, Memory


@runtime_checkable
class Segmenter(Protocol):
    """A model that carries the masks of some images over to others.

    Rows are independent: what a call gives for a row depends on that row of its arguments alone, up
    to rounding, and never on earlier calls. Features and memories are the model's own business;
    others only index and join them, except that two methods and a matcher compare
    ``Features.levels``, float ``[B, C, h, w]`` from fine to coarse.

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
    """A segmenter that also goes through a video frame by frame, as ``sam2_volume`` asks it to."""

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
