"""Masks on slices: the one place that knows how an image lies in a figure.

Row 0 of an image is posterior, so the first row belongs at the bottom: patients lie as radiologists
see them.
"""

from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

ORIGIN: Literal["lower"] = "lower"
OPACITY = 0.45


def show(axis: Axes, image: np.ndarray) -> None:
    """Draw a slice [H, W] in [0, 1], without ticks."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, origin=ORIGIN)
    axis.set_xticks([])
    axis.set_yticks([])


def fill(axis: Axes, mask: np.ndarray, colour: str, opacity: float = OPACITY) -> None:
    """Lay a mask bool [H, W] over what is drawn, as a tint."""
    axis.imshow(np.where(mask[..., None], to_rgba(colour, opacity), 0.0), origin=ORIGIN)


def outline(axis: Axes, mask: np.ndarray, colour: str, width: float = 1) -> None:
    """Draw the border of a mask bool [H, W]; nothing where it is empty."""
    if mask.any():
        axis.contour(mask, levels=[0.5], colors=[colour], linewidths=width)
