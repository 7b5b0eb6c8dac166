"""The figure of a report: a sweep as lines with bands, other runs as bars."""

import textwrap
from itertools import cycle

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsmis.reporting.overlay import FAINT, MARKERS, STYLE
from fsmis.reporting.overview import labels

# What the horizontal axis of a setting says; the others go by their name.
AXES = {
    "support_set.count": "support copies",
    "support_set.per_query_slice": "augmented copies for each query slice",
}
LEGEND = 0.22  # inch, height of a line below a figure
PER_INCH = 12  # letters of it
NAME = 0.06  # of an axis, height of a name in it
LETTERS = 44  # of a name in an axis


def draw(frame: pd.DataFrame, settings: list[str], organs: list[str]) -> Figure:
    """Draw the table of a report.

    Args:
        frame: the table (see ``overview.tabulate``).
        settings: its columns of settings.
        organs: its columns of organs.

    Returns:
        Mean Dice against the number of support copies, a line for each combination of the other
        settings, where that number differs; otherwise bars of each organ, grouped by organ.
    """
    curves = [name for name in AXES if name in swept(frame, settings)]
    with rc_context(STYLE):
        figure = Figure(layout="constrained")
        axis = figure.subplots()
        if curves:
            _name(axis, lines(axis, frame, curves[0], settings))
        else:
            _bars(axis, frame, settings, organs)
        handles, names = axis.get_legend_handles_labels()
        width = 7 if curves else max(7, 1.6 * len(organs) + 2)
        names = [textwrap.fill(name, int(PER_INCH * width)) for name in names]
        n_lines = sum(name.count("\n") + 1 for name in names)
        figure.set_size_inches(width, 4.5 + LEGEND * n_lines)
        figure.legend(handles, names, loc="outside lower left", fontsize="small")
    return figure


def swept(frame: pd.DataFrame, settings: list[str]) -> list[str]:
    """The settings that make a horizontal axis: numbers that differ, all else being equal."""
    return [
        name
        for name in settings
        if (values := frame[name].dropna()).nunique() > 1
        and values.map(_is_number).all()
        and _is_curve(_named(frame, name, settings), name).any()
    ]


def lines(axis: Axes, frame: pd.DataFrame, name: str, settings: list[str]) -> pd.DataFrame:
    """Draw mean Dice against the setting ``name``, with the interval of the mean as a band.

    A line for each combination of the other settings of which several values are there; runs of
    methods that lack the setting as dotted levels.

    Returns:
        The levels, which have no name yet: columns ``line`` and ``mean``, the highest first.
    """
    runs = _named(frame, name, settings)
    curves = runs[_is_curve(runs, name)]
    every = zip(curves.groupby("line", sort=False), cycle(MARKERS), strict=False)
    for (line, points), marker in every:
        points = points.sort_values(name)
        (drawn,) = axis.plot(points[name], points["mean"], marker=marker, label=line)
        band = axis.fill_between(points[name], points["low"], points["high"], alpha=0.15)
        band.set(color=drawn.get_color(), linewidth=0)
    lacking = runs.groupby("method")[name].transform("count") == 0
    levels = runs[lacking].dropna(subset=["mean"]).sort_values("mean", ascending=False)
    for dice in levels["mean"]:
        axis.axhline(dice, linestyle=":", color=FAINT)
    doubling(axis, curves[name])
    axis.set_xlabel(AXES.get(name, name))
    axis.set_ylabel("mean Dice %")
    return levels[["line", "mean"]]


def doubling(axis: Axes, numbers: pd.Series) -> None:
    """A horizontal axis of such numbers: as powers of two lie, where none is 0."""
    ticks = sorted(numbers.unique())
    if ticks[0] > 0:
        axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _named(frame: pd.DataFrame, name: str, settings: list[str]) -> pd.DataFrame:
    """The runs with the ``line`` they belong to, and the setting as numbers."""
    runs = frame.assign(line=labels(frame, [other for other in settings if other != name]))
    runs[name] = pd.to_numeric(runs[name])
    return runs


def _is_curve(runs: pd.DataFrame, name: str) -> pd.Series:
    """Whether the line of each run has several points."""
    return runs.groupby("line")[name].transform("nunique") > 1


def _name(axis: Axes, levels: pd.DataFrame) -> None:
    """The names of levels, above each other where they are close."""
    bottom, top = axis.get_ylim()
    free = bottom
    for line, dice in levels[::-1].itertuples(index=False):
        y = max(dice, free)
        text = textwrap.shorten(line, LETTERS, placeholder=" …")
        axis.text(1, y, text, transform=axis.get_yaxis_transform(), ha="right", va="bottom")
        free = y + NAME * (top - bottom)
    axis.set_ylim(bottom, max(top, free))


def _bars(axis: Axes, frame: pd.DataFrame, settings: list[str], organs: list[str]) -> None:
    bars = frame[[*organs, "mean"]].T.set_axis(labels(frame, settings), axis="columns")
    bars.plot.bar(ax=axis, rot=0, width=0.8, legend=False)
    axis.set_ylim(0, 100)
    axis.set_ylabel("Dice %")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
