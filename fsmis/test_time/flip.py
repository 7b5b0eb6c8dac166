"""Test-time flip: the logits averaged with those of the mirrored images, mirrored back."""

from dataclasses import replace

import numpy as np

from fsmis.prompting import Prompts, Segment
from fsmis.segmenters.answer import Answer


def mirror(images: np.ndarray) -> np.ndarray:
    """Images or masks ``[..., H, W]``, left and right exchanged."""
    return np.ascontiguousarray(images[..., ::-1])


def with_flip(upright: Segment, mirrored: Segment) -> Segment:
    """Average two views of the same images; where one sees no object, there is none.

    Args:
        upright: segments the images as they are.
        mirrored: segments the mirrored images; it gets the prompts with mirrored masks.
    """

    def segment(prompts: Prompts) -> Answer:
        one = upright(prompts)
        predicted = prompts.predicted_mask
        other = mirrored(
            replace(
                prompts,
                memory_mask=mirror(prompts.memory_mask),
                predicted_mask=None if predicted is None else mirror(predicted),
            )
        )
        return Answer(
            (one.logits + mirror(other.logits)) / 2,
            np.minimum(one.object_score, other.object_score),
            (one.iou + other.iou) / 2,
        )

    return segment
