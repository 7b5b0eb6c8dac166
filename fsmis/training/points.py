"""Prompts on the query itself: boxes and points drawn from a true mask."""

import torch
from torch import Generator, Tensor

from fsmis.segmenters.point_labels import (
    BACKGROUND,
    FOREGROUND,
    LOWER_RIGHT,
    NO_POINT,
    UPPER_LEFT,
)

JITTER = 0.1  # of the box's side, the deviation of each of its corners


def draw_points(masks: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """For each mask a box, or one to three points of which at most the last is background.

    Args:
        masks: ``[B, S, S]``, foreground above 0; an empty mask gets no point.
        generator: on the CPU, as the masks.

    Returns:
        coordinates float32 ``[B, 3, 2]``, (x, y) in pixels, and labels int32 ``[B, 3]``.
    """
    coordinates = torch.zeros(len(masks), 3, 2)
    labels = torch.full((len(masks), 3), NO_POINT, dtype=torch.int32)
    for row, mask in enumerate(masks):
        inside, outside = (mask > 0).nonzero(), (mask == 0).nonzero()  # (y, x)
        if len(inside) == 0:
            continue
        if torch.rand(1, generator=generator) < 0.5:
            low, high = inside.amin(0).float(), inside.amax(0).float() + 1
            noise = JITTER * torch.randn(2, 2, generator=generator)
            corners = torch.stack((low, high)) + noise * (high - low)
            coordinates[row, :2] = corners.flip(1)
            labels[row, :2] = torch.tensor([UPPER_LEFT, LOWER_RIGHT])
            continue
        foreground = int(torch.randint(1, 4, (1,), generator=generator))
        with_background = foreground < 3 and torch.rand(1, generator=generator) < 0.5
        kinds = [(inside, FOREGROUND)] * foreground + [(outside, BACKGROUND)] * bool(
            with_background and len(outside)
        )
        for point, (candidates, label) in enumerate(kinds):
            drawn = int(torch.randint(len(candidates), (1,), generator=generator))
            coordinates[row, point] = candidates[drawn].flip(0) + 0.5
            labels[row, point] = label
    return coordinates, labels
