"""Pictures: masks on slices, what was segmented, the truth, and the copy whose mask prompted it.

The one place that knows colours and how an image lies in a figure. Row 0 of an image is posterior,
so the first row belongs at the bottom: patients lie as radiologists see them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from cycler import cycler
from medpy.metric.binary import dc

from fsmis.data.geometry import AxialVolume, CommonGrid
from fsmis.data.protocol import Episode
from fsmis.files import write_atomic, write_figure
from fsmis.pipeline import Match
from fsmis.reporting.statistics import ranked
from fsmis.runs.evaluation import Segmented
from fsmis.runs.records import Cell

if TYPE_CHECKING:  # a second, in every run, that few need
    from matplotlib.axes import Axes
    from matplotlib.typing import ColorType

# Okabe and Ito, Color Universal Design (2008), without black; yellow last, it is weak on white.
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442"]
# On grey images: organs, the brightest first; what is true, what was answered, what prompted it.
ON_GREY = [*PALETTE[4:], *PALETTE[2:4], PALETTE[1], PALETTE[0], "#ffffff"]
TRUTH, PREDICTION, PROMPT = "#f0e442", "#56b4e9", "#cc79a7"
FAINT = "0.65"  # grey, of what stands behind
MARKERS = "osD^vPX"
STYLE: dict[Any, Any] = {"axes.prop_cycle": cycler(color=PALETTE)}
ORIGIN: Literal["lower"] = "lower"
OPACITY = 0.45
CHOICES = ("none", "worst", "all")
MOST_SUPPORTS = 3  # labelled slices in a preview


def show(axis: "Axes", image: np.ndarray, scaled: bool = True) -> None:
    """Draw a slice [H, W] without ticks, in [0, 1] where it is ``scaled``."""
    low, high = (0, 1) if scaled else (image.min(), image.max())
    axis.imshow(image, cmap="gray", vmin=low, vmax=high, origin=ORIGIN)
    axis.set_xticks([])
    axis.set_yticks([])


def fill(axis: "Axes", mask: np.ndarray, colour: "ColorType", opacity: float = OPACITY) -> None:
    """Lay a mask bool [H, W] over what is drawn, as a tint."""
    from matplotlib.colors import to_rgba

    axis.imshow(np.where(mask[..., None], to_rgba(colour, opacity), 0.0), origin=ORIGIN)


def outline(axis: "Axes", mask: np.ndarray, colour: "ColorType", width: float = 1) -> None:
    """Draw the border of a mask bool [H, W]; nothing where it is empty."""
    if mask.any():
        axis.contour(mask, levels=[0.5], colors=[colour], linewidths=width)


def organ_colours(organs: list[str]) -> dict[str, str]:
    """A colour for each organ on grey images; from the ninth on they come again."""
    return {organ: ON_GREY[number % len(ON_GREY)] for number, organ in enumerate(organs)}


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
    from matplotlib.figure import Figure

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


def _answer(axis: "Axes", segmented: Segmented, organ: str, row: int) -> None:
    """A query slice with the truth and the prediction."""
    z = segmented.episode.organs[organ].query_slices[row]
    mask, truth = segmented.masks[organ][row], segmented.truths[organ][row]
    _overlay(axis, segmented.query.image[z], mask, PREDICTION)
    outline(axis, truth, TRUTH)
    axis.set_title(f"slice {z}: Dice {_percent(mask, truth):.1f}", fontsize=8)


def _overlay(axis: "Axes", image: np.ndarray, mask: np.ndarray, colour: str) -> None:
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
    """Draw up to ``n_slices`` slices of the query, spread over those with a label, and the nearest
    left empty at either end; below, which slices hold which label.

    Patients lie as radiologists see them. Slices are counted from the feet.

    Args:
        path: ``.png``, ``.pdf`` or ``.svg``.
        episode: what the method saw, on the common grid.
        labels: its answer [Z, H, W] on the voxels of ``query``.
        query: the volume in full.
        grid: the common grid.
        n_slices: most slices drawn with a label.
    """
    from matplotlib.figure import Figure

    found = np.flatnonzero(labels.any(axis=(1, 2)))
    shown = _spread_and_ends(found, len(labels), n_slices)
    supports = _evenly(episode.support_slices, MOST_SUPPORTS).tolist()
    columns = len(supports) + len(shown)
    figure = Figure(figsize=(3 * columns, 4.8), layout="constrained")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.6, 1.2])[:, 0]
    axes = parts[0].subplots(1, columns, squeeze=False)[0]
    images = [*episode.support.image[supports], *episode.query.image[shown]]
    titles = ["labelled slice"] * len(supports)
    titles += [f"query, slice {z}" + ("" if z in found else ": left empty") for z in shown]
    for axis, image, title in zip(axes, images, titles, strict=True):
        show(axis, image)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    colours = organ_colours(list(episode.organs))
    for organ, task in episode.organs.items():
        labelled = dict(zip(task.support_slices.tolist(), task.support_masks, strict=True))
        nothing = np.zeros(episode.support.image.shape[1:], bool)
        answers = grid.to_common_grid(labels[shown] == int(organ), query.spacing)
        masks = [*(labelled.get(z, nothing) for z in supports), *answers]
        for axis, mask in zip(axes, masks, strict=True):
            outline(axis, mask, colours[organ])
    _draw_extent(parts[1].subplots(), labels, colours)
    write_figure(path, figure)


def _spread_and_ends(found: np.ndarray, n_slices: int, most: int) -> np.ndarray:
    """Up to ``most`` of the slices found, evenly apart, and those beside the first and the last."""
    candidates = found if len(found) else np.arange(n_slices)
    beside = np.array([candidates[0] - 1, candidates[-1] + 1])
    inside = beside[(beside >= 0) & (beside < n_slices)]
    return np.unique([*_evenly(candidates, most), *inside])


def _evenly(slices: np.ndarray, most: int) -> np.ndarray:
    return slices[np.unique(np.linspace(0, len(slices) - 1, most).round().astype(int))]


def _draw_extent(axis: "Axes", labels: np.ndarray, colours: dict[str, str]) -> None:
    """A row for each label, filled in the slices that hold it."""
    for row, (organ, colour) in enumerate(colours.items()):
        held = np.flatnonzero((labels == int(organ)).any(axis=(1, 2)))
        axis.broken_barh([(z - 0.5, 1) for z in held], (row - 0.4, 0.8), color=colour)
    axis.set_facecolor("0.25")  # as on grey images, for whose sake the colours are bright
    axis.set_xlim(-0.5, len(labels) - 0.5)
    axis.set_ylim(len(colours) - 0.5, -0.5)
    axis.set_yticks(range(len(colours)), [f"label {organ}" for organ in colours], fontsize=8)
    axis.set_xlabel("slices of the query that hold it, from the feet", fontsize=8)


def write_training(folder: Path, fold: int, log: pd.DataFrame) -> None:
    """Write ``fold_<k>.csv`` and ``fold_<k>.png`` to a folder.

    Args:
        folder: is made where it is missing.
        fold: number of the fold.
        log: columns ``step``, ``loss``, and the terms that it is the sum of.
    """
    from matplotlib.figure import Figure

    write_atomic(folder / f"fold_{fold}.csv", log.to_csv(index=False).encode())
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    for name in log.columns.drop("step"):
        axis.plot(log["step"], log[name], label=name, linewidth=2 if name == "loss" else 1)
    axis.set(xlabel="step", ylabel="training loss", title=f"fold {fold}")
    axis.legend()
    write_figure(folder / f"fold_{fold}.png", figure)
