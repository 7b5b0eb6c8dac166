"""Overlay figures: what was segmented, the truth, and the copy whose mask prompted it."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fsmis.files.atomic import write_figure
from fsmis.methods.base import Match
from fsmis.protocol import Episode
from fsmis.runs.evaluation import Segmented
from fsmis.runs.records import Cell

CHOICES = ("none", "worst", "all")
TRUTH, PREDICTION, PROMPT = "#ffd400", "#00b4d8", "#ff5c8a"


def select(scores: pd.DataFrame, cells: list[Cell], which: str, n_worst: int) -> list[Cell]:
    """The cells to draw, of those with scores: none, the ``n_worst`` lowest in Dice, or all."""
    if which == "none" or scores.empty:
        return []
    dice = scores.groupby(["fold", "query_scan"])["dice"].mean()
    scored = [cell for cell in cells if (cell.fold, cell.query_scan) in dice.index]
    if which == "all":
        return scored
    return sorted(scored, key=lambda cell: dice[cell.fold, cell.query_scan])[:n_worst]


def draw(path: Path, segmented: Segmented, n_slices: int, title: str) -> None:
    """Draw one query scan as PNG: two rows for each organ, a column for each of ``n_slices``.

    The upper row is the query slice with the true outline and the predicted area, the lower one the
    copy and mask that prompted it (for a method that names none, the support slice). Patients lie
    as radiologists see them.
    """
    organs = segmented.episode.organs
    if not organs:
        return
    figure = Figure(figsize=(2 * n_slices, 4 * len(organs) + 0.8), layout="constrained")
    axes = figure.subplots(2 * len(organs), n_slices, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, (organ, task) in enumerate(organs.items()):
        truth, mask = segmented.truths[organ], segmented.masks[organ]
        matches = segmented.matches.get(organ) or _support_slices(segmented.episode, organ)
        inside = np.flatnonzero(truth.any(axis=(1, 2)))
        spread = np.linspace(0, len(inside) - 1, n_slices + 2).round().astype(int)[1:-1]
        for column, slice_ in enumerate(dict.fromkeys(inside[spread])):
            z = task.query_slices[slice_]
            upper, lower = axes[2 * row, column], axes[2 * row + 1, column]
            _overlay(upper, segmented.query.image[z], mask[slice_], PREDICTION)
            upper.contour(truth[slice_], levels=[0.5], colors=TRUTH, linewidths=1)
            upper.set_title(f"{organ}, slice {z}", fontsize=8)
            _overlay(lower, matches[slice_].image, matches[slice_].mask, PROMPT)
            lower.set_title("prompted by", fontsize=8)
    figure.suptitle(
        f"{title}\nquery scan {segmented.query.id}, support scan {segmented.episode.support.id}: "
        "truth outlined (yellow), prediction (blue), prompt (pink)",
        fontsize=9,
    )
    write_figure(path, figure)


def _support_slices(episode: Episode, organ: str) -> list[Match]:
    task = episode.organs[organ]
    slices = task.support_slices[task.part]
    masks = task.support_masks[task.part]
    return [Match(*pair) for pair in zip(episode.support.image[slices], masks, strict=True)]


def _overlay(axis: Axes, image: np.ndarray, mask: np.ndarray, colour: str) -> None:
    # row 0 is posterior, so the first row belongs at the bottom
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, origin="lower")
    red, green, blue = to_rgb(colour)
    axis.imshow(np.dstack([mask * red, mask * green, mask * blue, mask * 0.45]), origin="lower")
