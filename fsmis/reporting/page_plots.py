"""The charts of the page, as SVG that takes its font and text colour from the page."""

import io
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fsmis.reporting import figures
from fsmis.reporting.charts import lines, swept
from fsmis.reporting.runs import StoredRun, best_first, labels, organs_of

INK = "#010203"  # stands for the colour of the page's text
DOT, MEDIAN = figures.PALETTE[:2]
WIDTH = 4.4  # inches; about the width of a phone
PLOT = 3.2  # inches, height of a chart of curves without its legend
BOX = 0.18  # inches, height of a box
LINE = 0.15  # inches, height of a line of a name
GAP = 0.09  # inches between a name and the box below it, or the row above it
LETTERS = 46  # that fit into the width
STEP = 10  # percent to which the ends of an axis are rounded
STYLE: dict[Any, Any] = {
    **figures.STYLE,
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor"], INK),
    **dict.fromkeys(["xtick.color", "ytick.color", "grid.color"], INK),
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True},
    **{"grid.alpha": 0.15, "font.size": 10.5, "legend.frameon": False, "legend.fontsize": 9},
    **{"svg.fonttype": "none", "text.parse_math": False},
}


@dataclass(frozen=True)
class Chart:
    heading: str
    caption: str
    svg: Markup


def charts(
    frame: pd.DataFrame, settings: list[str], runs: list[StoredRun], n_charted: int
) -> list[Chart]:
    """For each dataset, the curves of what is swept, the means, and the box plots of its organs.

    Dice has the same axis in all curves of the page, and the same in all other charts. See
    ``write_page`` for the arguments.
    """
    scored = frame.dropna(subset=["mean"])
    by_dataset = {
        str(dataset): every.loc[every.index.isin(best_first(every, runs)[:n_charted])]
        for dataset, every in scored.groupby("dataset", sort=False)
    }
    indices = [index for few in by_dataset.values() for index in few.index]
    scans = _ends(runs[index].dice.to_numpy() for index in indices)
    means = _ends(scored.loc[indices, ["low", "mean", "high"]].to_numpy(float).T)
    found = []
    for dataset, few in by_dataset.items():
        total = int((scored["dataset"] == dataset).sum())
        left_out = f" The {len(few)} best of {total} runs." if len(few) < total else ""
        names = labels(few, settings)
        for setting in swept(few, settings):
            draw = partial(_curves, frame=few, setting=setting, settings=settings, ends=means)
            caption = "Mean Dice over organs; the band is the 95 % interval of the mean."
            found.append(_chart(f"{dataset}: {setting}", caption + left_out, PLOT, draw))
        draw = partial(_means, frame=few, names=names, ends=scans)
        caption = "Mean Dice with its 95 % interval (bootstrap over patients)."
        height = _height(names)
        found.append(_chart(f"{dataset}: mean over organs", caption + left_out, height, draw))
        for organ in organs_of(runs[index] for index in few.index):
            dice = [runs[index].dice.get(organ) for index in few.index]
            values = [np.array([]) if one is None else one.dropna().to_numpy() for one in dice]
            draw = partial(_boxes, values=values, names=names, ends=scans)
            caption = "Dice of each scan; box: quartiles, line: median."
            found.append(_chart(f"{dataset}: {organ}", caption + left_out, height, draw))
    return found


def _ends(values: Iterable[np.ndarray]) -> tuple[float, float]:
    """Ends of an axis for some percents, rounded and with a margin for their markers."""
    numbers = np.concatenate([np.ravel(part) for part in values] or [np.array([np.nan])])
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return 0, 100
    low = STEP * np.floor(numbers.min() / STEP)
    high = STEP * np.ceil(numbers.max() / STEP)
    high = max(high, low + STEP)
    margin = 0.02 * (high - low)
    return low - margin, high + margin


def _chart(heading: str, caption: str, height: float, draw: Callable[[Axes], None]) -> Chart:
    with rc_context(STYLE | {"svg.hashsalt": heading}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Chart(heading, caption, _inline(file.getvalue(), heading))


def _inline(text: str, heading: str) -> Markup:
    """An SVG file as part of a page: without prologue and size, with ids of its own."""
    svg = text[text.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    prefix = re.sub(r"\W", "-", heading)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(heading)}"', 1))


def _curves(
    axis: Axes, frame: pd.DataFrame, setting: str, settings: list[str], ends: tuple[float, float]
) -> None:
    levels = lines(axis, frame, setting, settings)
    axis.set_ylim(*ends)
    handles, names = axis.get_legend_handles_labels()
    handles += [Line2D([], [], linestyle=":", color=figures.FAINT)] * len(levels)
    names += [f"{mean:.1f} {line}" for line, mean in levels.itertuples(index=False)]
    wrapped = [_wrapped(name) for name in names]
    legend = sum(LINE * _n_lines(name) + GAP for name in wrapped)
    figure = axis.figure
    assert isinstance(figure, Figure)
    figure.set_size_inches(WIDTH, PLOT + legend)
    figure.legend(handles, wrapped, loc="outside lower left")


def _means(axis: Axes, frame: pd.DataFrame, names: list[str], ends: tuple[float, float]) -> None:
    rows = _rows(axis, names, ends)
    axis.hlines(rows, frame["low"], frame["high"], color=DOT, linewidth=2)
    axis.plot(frame["mean"], rows, "o", color=DOT)
    for row, mean in zip(rows, frame["mean"], strict=True):  # beside the name
        axis.annotate(
            f"{mean:.1f}", (ends[1], row - BOX / 2 - GAP), va="bottom", ha="right", fontsize=9
        )


def _boxes(
    axis: Axes, values: list[np.ndarray], names: list[str], ends: tuple[float, float]
) -> None:
    rows = _rows(axis, names, ends)
    axis.boxplot(
        values,
        positions=rows,
        orientation="horizontal",
        widths=BOX,
        manage_ticks=False,
        showfliers=False,
        boxprops={"color": INK},
        whiskerprops={"color": INK},
        capprops={"color": INK},
        medianprops={"color": MEDIAN, "linewidth": 2},
    )
    for row, dice in zip(rows, values, strict=True):
        axis.plot(dice, np.full(len(dice), row), "o", color=DOT, alpha=0.5, markersize=4)


def _rows(axis: Axes, names: list[str], ends: tuple[float, float]) -> list[float]:
    """A row for each run, its name above it, since a phone has no room beside it.

    Returns the rows' positions on the vertical axis, in inches from the top.
    """
    rows, top = [], 0.0
    for name in names:
        wrapped = _wrapped(name)
        text = axis.annotate(
            wrapped, (0, top), xycoords=("axes fraction", "data"), va="top", fontsize=9
        )
        text.set_in_layout(False)  # it may be wider than the axis
        top += LINE * _n_lines(wrapped) + GAP + BOX / 2
        rows.append(top)
        top += BOX / 2 + GAP
    axis.spines.left.set_visible(False)
    axis.set_yticks([])
    axis.set_ylim(top, 0)
    axis.set_xlim(*ends)
    axis.set_xlabel("Dice %")
    return rows


def _height(names: list[str]) -> float:
    return 0.6 + sum(LINE * _n_lines(_wrapped(name)) + 2 * GAP + BOX for name in names)


def _n_lines(text: str) -> int:
    return text.count("\n") + 1


def _wrapped(name: str) -> str:
    return textwrap.fill(name, LETTERS, break_on_hyphens=False)
