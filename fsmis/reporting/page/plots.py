"""The charts of the page, as SVG that takes its font and its ink from the page."""

import io
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsmis.reporting.charts import labels, lines, swept
from fsmis.reporting.collection import StoredRun
from fsmis.reporting.statistics import by_scan

INK = "#010203"  # stands for the colour of the page's text
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]  # Okabe and Ito
WIDTH = 4.4  # inches; about the width of a phone
BOX = 0.18  # inches, height of a box
LETTERS = 46  # that fit into it
STYLE: dict[Any, Any] = {
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor"], INK),
    **dict.fromkeys(["xtick.color", "ytick.color", "grid.color"], INK),
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True},
    **{"grid.alpha": 0.15, "font.size": 10.5, "legend.frameon": False, "legend.fontsize": 9},
    **{"svg.fonttype": "none", "text.parse_math": False},
}


@dataclass(frozen=True)
class Chart:
    """A chart: heading, what it shows, and itself."""

    heading: str
    caption: str
    svg: Markup


def charts(
    frame: pd.DataFrame, settings: list[str], runs: list[StoredRun], n_charted: int
) -> list[Chart]:
    """For each dataset, the curves of what is swept, the means, and the box plots of its organs.

    Args:
        frame: see ``collection.tabulate``.
        settings: its columns of settings.
        runs: of the table.
        n_charted: most runs in a chart; those of the highest mean are taken.
    """
    scored = frame.dropna(subset=["mean"])
    found = []
    for dataset, every in scored.groupby("dataset", sort=False):
        few = every.loc[every.index.isin(every["mean"].nlargest(n_charted).index)]
        names = labels(few, settings)
        for setting in swept(few, settings):
            found.append(
                _chart(
                    f"{dataset}: {setting}",
                    "Mean Dice over organs; the band is the 95 % interval of the mean.",
                    3 + 0.2 * len(set(names)) / few[setting].nunique() * _most_lines(names),
                    partial(_curves, frame=few, setting=setting, settings=settings),
                )
            )
        left_out = f" The {len(few)} best of {len(every)} runs." if len(few) < len(every) else ""
        found.append(
            _chart(
                f"{dataset}: mean over organs",
                f"Mean Dice with its 95 % interval (bootstrap over patients).{left_out}",
                _height(names),
                partial(_means, frame=few, names=names),
            )
        )
        for organ in runs[few.index[0]].plan["organs"]:
            dice = [by_scan(runs[index].scores).get(organ) for index in few.index]
            values = [np.array([]) if one is None else one.dropna().to_numpy() for one in dice]
            found.append(
                _chart(
                    f"{dataset}: {organ}",
                    f"Dice of each scan; box: quartiles, line: median.{left_out}",
                    _height(names),
                    partial(_boxes, values=values, names=names),
                )
            )
    return found


def _chart(heading: str, caption: str, height: float, draw: Callable[[Axes], None]) -> Chart:
    with rc_context(STYLE | {"svg.hashsalt": heading}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axis = figure.subplots()
        axis.set_prop_cycle(cycler(color=PALETTE))
        draw(axis)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Chart(heading, caption, _inline(file.getvalue(), heading))


def _inline(text: str, heading: str) -> Markup:
    """An SVG file as part of a page: without prologue and size, its ids its own."""
    svg = text[text.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    prefix = re.sub(r"\W", "-", heading)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(heading)}"', 1))


def _curves(axis: Axes, frame: pd.DataFrame, setting: str, settings: list[str]) -> None:
    lines(axis, frame, setting, settings)
    handles, names = axis.get_legend_handles_labels()
    axis.legend().remove()
    wrapped = [_wrapped(name) for name in names]
    axis.figure.legend(handles, wrapped, loc="outside lower left")


def _means(axis: Axes, frame: pd.DataFrame, names: list[str]) -> None:
    rows = range(len(frame))
    axis.hlines(rows, frame["low"], frame["high"], color=PALETTE[0], linewidth=2)
    axis.plot(frame["mean"], rows, "o", color=PALETTE[0])
    for row, mean in zip(rows, frame["mean"], strict=True):
        axis.annotate(f"{mean:.1f}", (mean, row), (0, -14), textcoords="offset points", ha="center")
    _rows(axis, names)


def _boxes(axis: Axes, values: list[np.ndarray], names: list[str]) -> None:
    rows = range(len(values))
    axis.boxplot(
        values,
        positions=rows,
        orientation="horizontal",
        widths=BOX / _row_height(names),
        showfliers=False,
        boxprops={"color": INK},
        whiskerprops={"color": INK},
        capprops={"color": INK},
        medianprops={"color": PALETTE[1], "linewidth": 2},
    )
    for row, dice in zip(rows, values, strict=True):
        axis.plot(dice, np.full(len(dice), row), "o", color=PALETTE[0], alpha=0.5, markersize=4)
    _rows(axis, names)


def _rows(axis: Axes, names: list[str]) -> None:
    """A row for each run, the first on top, its name above it: a phone has no room beside it."""
    for row, name in enumerate(names):
        label = axis.annotate(
            _wrapped(name),
            (0, row),
            (0, 10),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=9,
        )
        label.set_in_layout(False)  # it may be wider than the axis
    axis.spines.left.set_visible(False)
    axis.set_yticks([])
    axis.set_ylim(len(names) - 0.5, -0.8)
    axis.set_xlabel("Dice %")


def _height(names: list[str]) -> float:
    """Inches of a chart with a row for each run."""
    return 0.8 + len(names) * _row_height(names)


def _row_height(names: list[str]) -> float:
    return 0.42 + 0.16 * _most_lines(names)


def _most_lines(names: list[str]) -> int:
    return max(_wrapped(name).count("\n") + 1 for name in names)


def _wrapped(name: str) -> str:
    return textwrap.fill(name, LETTERS, break_on_hyphens=False)
