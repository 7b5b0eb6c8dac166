"""Masks on slices: the one place that knows how an image lies in a figure.

Row 0 of an image is posterior, so the first row belongs at the bottom: patients lie as radiologists
see them.
"""

from typing import Any, Literal

import numpy as np
from cycler import cycler
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


# Okabe and Ito, Color Universal Design (2008), without black; yellow last, it is weak on white.
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442"]
# On grey images: organs, the brightest first; what is true, what was answered, what prompted it.
ON_GREY = [*PALETTE[4:], *PALETTE[2:4], PALETTE[1], PALETTE[0], "#ffffff"]
TRUTH, PREDICTION, PROMPT = "#f0e442", "#56b4e9", "#cc79a7"
FAINT = "0.65"  # grey, of what stands behind
MARKERS = "osD^vPX"
STYLE: dict[Any, Any] = {"axes.prop_cycle": cycler(color=PALETTE)}


def organ_colours(organs: list[str]) -> dict[str, str]:
    """A colour for each organ on grey images; from the ninth on they come again."""
    return {organ: ON_GREY[number % len(ON_GREY)] for number, organ in enumerate(organs)}
