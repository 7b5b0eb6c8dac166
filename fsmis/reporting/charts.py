"""The figure of a report: a sweep as lines with bands, other runs as bars."""

import textwrap
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsmis.reporting.figures import FAINT, MARKERS, STYLE
from fsmis.reporting.paper_rows import Rows
from fsmis.reporting.runs import labels
from fsmis.reporting.statistics import patient_means
from fsmis.reporting.tables import MEAN

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
        frame: the table (see ``runs.tabulate``).
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


LINE = 0.28  # height of a run in a figure, inch
PRINTED = STYLE | {"font.size": 8}
BREADTH = 0.2  # of what is drawn around one place, either way


def dots(rows: Rows, published: pd.Series | None = None) -> Figure:
    """A line for each run: the patients, the mean and its interval; hollow where partial.

    Args:
        rows: of the table.
        published: mean Dice by name, drawn above the runs and without an interval.
    """
    theirs = pd.Series(dtype=float) if published is None else published
    frame, first = rows.frame, len(theirs)
    labels = [*theirs.index, *(row.label for row in rows.rows)]
    with rc_context(PRINTED):
        figure = Figure(figsize=(6.5, 1.1 + LINE * len(labels)), layout="constrained")
        axis = figure.subplots()
        if first:
            axis.plot(theirs, range(first), "D", color="C1", ms=4, label="published")
        for y, row in enumerate(rows.rows, first):
            patients = patient_means(row.run.dice)
            heights = y + np.linspace(-BREADTH, BREADTH, len(patients))
            axis.scatter(patients, heights, s=6, color=FAINT, label="patients")
            numbers = frame.loc[[y - first]]
            axis.errorbar(
                numbers[MEAN],
                [y],
                xerr=_intervals(numbers),
                fmt="o",
                color="C0",
                mfc="white" if row.run.partial else "C0",
                capsize=3,
                label="mean, 95 % interval",
            )
        if rows.reference is not None:
            axis.axvline(rows.reference.dice[MEAN], color="C0", linewidth=0.8, linestyle=":")
        axis.set_yticks(range(len(labels)), labels)
        axis.set_ylim(len(labels) - 0.4, -0.6)
        axis.set_xlabel("Dice %, mean over organs")
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    return figure


def curve(rows: Rows, label: str) -> Figure:
    """Dice of each organ, and the mean with its interval as a band, over the runs in their order.

    Args:
        rows: of the table.
        label: of the horizontal axis, on which the runs stand by name.
    """
    frame = rows.frame
    places = range(len(frame))
    with rc_context(PRINTED):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axis = figure.subplots()
        organs = [organ for organ in rows.rows[0].dice.index if organ != MEAN]
        for organ, marker in zip(organs, cycle(MARKERS[1:]), strict=False):
            axis.plot(places, frame[organ], marker=marker, ms=4, linewidth=0.9, label=organ)
        (line,) = axis.plot(places, frame[MEAN], "ko-", linewidth=2, label="mean, 95 % interval")
        axis.fill_between(
            places, frame["low"], frame["high"], color=line.get_color(), alpha=0.15, linewidth=0
        )
        axis.set_xticks(places, [row.label for row in rows.rows])
        axis.set_xlabel(label)
        axis.set_ylabel("Dice %")
        axis.legend()
    return figure


def curves(rows: Rows, along: str, group: str, label: str) -> Figure:
    """Mean Dice against a number, a line for each group.

    Without intervals: those of the same patients cover each other, the table has them.

    Args:
        rows: of the table.
        along: column of the numbers, which lie apart as powers of two do.
        group: column of what is told apart.
        label: of the horizontal axis.
    """
    frame = rows.frame.astype({along: float}).sort_values(along)
    with rc_context(PRINTED):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axis = figure.subplots()
        found = frame.groupby(group, sort=False)
        for (name, points), marker in zip(found, cycle(MARKERS), strict=False):
            axis.plot(points[along], points[MEAN], marker=marker, ms=5, label=name)
        doubling(axis, frame[along])
        axis.set_xlabel(label)
        axis.set_ylabel("Dice %, mean over organs")
        axis.legend()
    return figure


def groups(rows: Rows, along: str, group: str) -> Figure:
    """Mean Dice with its interval at each place of an axis, told apart by colour and marker.

    Args:
        rows: of the table.
        along: column of the places.
        group: column of what is told apart.
    """
    frame = rows.frame
    places = list(dict.fromkeys(frame[along]))
    with rc_context(PRINTED):
        figure = Figure(figsize=(max(6, 0.8 * len(places) + 2), 4.5), layout="constrained")
        axis = figure.subplots()
        found = frame.groupby(group, sort=False)
        shifts = np.linspace(-BREADTH, BREADTH, len(found)) if len(found) > 1 else [0]
        for (name, points), shift, marker in zip(found, shifts, cycle(MARKERS), strict=False):
            x = [places.index(place) + shift for place in points[along]]
            bars = _intervals(points)
            axis.errorbar(x, points[MEAN], yerr=bars, fmt=marker, ms=5, capsize=3, label=name)
        axis.set_xticks(range(len(places)), places, rotation=30, ha="right")
        axis.set_ylabel("Dice %, mean over organs; bar: 95 % interval")
        axis.legend()
    return figure


def _intervals(numbers: pd.DataFrame) -> np.ndarray:
    """Lengths of the interval to both sides of the mean; 0 for a single patient, which has none."""
    ends = np.stack([numbers[MEAN] - numbers["low"], numbers["high"] - numbers[MEAN]])
    return np.nan_to_num(ends).clip(min=0)
