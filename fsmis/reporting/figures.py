"""Case pictures: what was segmented, the truth, and the copy whose mask prompted it."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from medpy.metric.binary import dc

from fsmis.data.geometry import AxialVolume, CommonGrid
from fsmis.data.protocol import Episode
from fsmis.files import write_figure
from fsmis.pipeline.matching import Match
from fsmis.reporting.overlay import PREDICTION, PROMPT, TRUTH, fill, organ_colours, outline, show
from fsmis.reporting.statistics import ranked
from fsmis.runs.evaluation import Segmented
from fsmis.runs.records import Cell

CHOICES = ("none", "worst", "all")


def select(scores: pd.DataFrame, cells: list[Cell], which: str, n_worst: int) -> list[Cell]:
    """The cells to draw, of those with scores: none, the ``n_worst`` lowest in Dice, or all."""
    if which == "none" or scores.empty:
        return []
    if which == "all":
        scored = set(zip(scores["fold"], scores["query_scan"], strict=True))
        return [cell for cell in cells if (cell.fold, cell.query_scan) in scored]
    found = {(cell.fold, cell.query_scan): cell for cell in cells}
    worst = [found.get((fold, query)) for fold, _, query in ranked(scores).index]
    return [cell for cell in worst if cell is not None][:n_worst]


def draw(path: Path, segmented: Segmented, n_slices: int, title: str) -> None:
    """Draw one query scan as PNG: two rows for each organ, a column for each of ``n_slices``.

    The organ of the lowest Dice comes first. The upper row is the query slice with the true outline
    and the predicted area, the lower one the copy and mask that prompted it (for a method that
    names none, the support slice). Dice, in percent, is told for each organ and slice.
    """
    organs = segmented.episode.organs
    if not organs:
        return
    dice = {organ: _percent(segmented.masks[organ], segmented.truths[organ]) for organ in organs}
    ascending = sorted(organs, key=lambda organ: dice[organ])
    figure = Figure(figsize=(2 * n_slices, 4.2 * len(organs) + 0.8), layout="constrained")
    parts = figure.subfigures(len(organs), squeeze=False).ravel()
    for part, organ in zip(parts, ascending, strict=True):
        part.suptitle(f"{organ}: Dice {dice[organ]:.1f}", fontsize=10, weight="bold")
        rows = part.subplots(2, n_slices, squeeze=False)
        for axis in rows.flat:
            axis.axis("off")
        matches = segmented.matches.get(organ)
        prompts = matches or _support_slices(segmented.episode, organ)
        slices = _spread(segmented.truths[organ], n_slices)
        for upper, lower, row in zip(*rows, slices, strict=False):
            _answer(upper, segmented, organ, row)
            _overlay(lower, prompts[row].image, prompts[row].mask, PROMPT)
            lower.set_title(_said_of(prompts[row]) if matches else "support slice", fontsize=7)
    figure.suptitle(
        f"{title}\nquery scan {segmented.query.id}, support scan {segmented.episode.support.id}: "
        "truth outlined (yellow), prediction (blue), prompt (pink); worst organ first",
        fontsize=9,
    )
    write_figure(path, figure)


def _answer(axis: Axes, segmented: Segmented, organ: str, row: int) -> None:
    """A query slice with the truth and the prediction."""
    z = segmented.episode.organs[organ].query_slices[row]
    mask, truth = segmented.masks[organ][row], segmented.truths[organ][row]
    _overlay(axis, segmented.query.image[z], mask, PREDICTION)
    outline(axis, truth, TRUTH)
    axis.set_title(f"slice {z}: Dice {_percent(mask, truth):.1f}", fontsize=8)


def _overlay(axis: Axes, image: np.ndarray, mask: np.ndarray, colour: str) -> None:
    show(axis, image)
    fill(axis, mask, colour)


def _said_of(match: Match) -> str:
    return "prompted by" if match.of == 1 else f"prompted by {match.of} copies, one shown"


def _percent(mask: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two masks, of which the true one is not empty."""
    return 100 * float(dc(mask, truth))


def _spread(truth: np.ndarray, n_slices: int) -> list[int]:
    """Up to ``n_slices`` of the slices that show an organ, evenly apart."""
    inside = np.flatnonzero(truth.any(axis=(1, 2)))
    spread = np.linspace(0, len(inside) - 1, n_slices + 2).round().astype(int)[1:-1]
    return list(dict.fromkeys(inside[spread].tolist()))


def _support_slices(episode: Episode, organ: str) -> list[Match]:
    task = episode.organs[organ]
    slices = task.support_slices[task.part]
    masks = task.support_masks[task.part]
    return [Match(*pair) for pair in zip(episode.support.image[slices], masks, strict=True)]


def draw_preview(
    path: Path,
    episode: Episode,
    labels: np.ndarray,
    query: AxialVolume,
    grid: CommonGrid,
    n_slices: int,
) -> None:
    """Draw up to ``n_slices`` slices of the query, spread over those with a label.

    Patients lie as radiologists see them. Slices are counted from the feet.

    Args:
        path: ``.png``, ``.pdf`` or ``.svg``.
        episode: what the method saw, on the common grid.
        labels: its answer [Z, H, W] on the voxels of ``query``.
        query: the volume in full.
        grid: the common grid.
        n_slices: most slices drawn.
    """
    found = np.flatnonzero(labels.any(axis=(1, 2)))
    candidates = found if len(found) else np.arange(len(labels))
    spread = np.linspace(0, len(candidates) - 1, n_slices).round().astype(int)
    shown = candidates[np.unique(spread)]

    figure = Figure(figsize=(3 * (len(shown) + 1), 3.8), layout="constrained")
    axes = figure.subplots(1, len(shown) + 1)
    images = [episode.support.image[0], *episode.query.image[shown]]
    titles = ["labelled slice", *(f"query, slice {z}" for z in shown)]
    for axis, image, title in zip(axes, images, titles, strict=True):
        show(axis, image)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    colours = organ_colours(list(episode.organs))
    for organ, task in episode.organs.items():
        answers = grid.to_common_grid(labels[shown] == int(organ), query.spacing)
        for axis, mask in zip(axes, [task.support_masks[0], *answers], strict=True):
            outline(axis, mask, colours[organ])
        axes[0].plot([], [], color=colours[organ], label=f"label {organ}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=10)
    write_figure(path, figure)
