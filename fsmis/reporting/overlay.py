"""Masks on slices: the one place that knows how an image lies in a figure.

Row 0 of an image is posterior, so the first row belongs at the bottom: patients lie as radiologists
see them.
"""

from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.typing import ColorType

ORIGIN: Literal["lower"] = "lower"
OPACITY = 0.45


def show(axis: Axes, image: np.ndarray, scaled: bool = True) -> None:
    """Draw a slice [H, W] without ticks, in [0, 1] where it is ``scaled``."""
    low, high = (0, 1) if scaled else (image.min(), image.max())
    axis.imshow(image, cmap="gray", vmin=low, vmax=high, origin=ORIGIN)
    axis.set_xticks([])
    axis.set_yticks([])


def fill(axis: Axes, mask: np.ndarray, colour: ColorType, opacity: float = OPACITY) -> None:
    """Lay a mask bool [H, W] over what is drawn, as a tint."""
    axis.imshow(np.where(mask[..., None], to_rgba(colour, opacity), 0.0), origin=ORIGIN)


def outline(axis: Axes, mask: np.ndarray, colour: ColorType, width: float = 1) -> None:
    """Draw the border of a mask bool [H, W]; nothing where it is empty."""
    if mask.any():
        axis.contour(mask, levels=[0.5], colors=[colour], linewidths=width)
