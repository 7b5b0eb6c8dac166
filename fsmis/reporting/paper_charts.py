"""The charts of a paper's tables: mean Dice with its 95 % interval."""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from fsmis.reporting.charts import doubling
from fsmis.reporting.overlay import FAINT, MARKERS, STYLE
from fsmis.reporting.paper_rows import Rows
from fsmis.reporting.statistics import patient_means
from fsmis.reporting.tables import MEAN

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
                xerr=_bars(numbers),
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


def lines(rows: Rows, along: str, group: str, label: str) -> Figure:
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
            bars = _bars(points)
            axis.errorbar(x, points[MEAN], yerr=bars, fmt=marker, ms=5, capsize=3, label=name)
        axis.set_xticks(range(len(places)), places, rotation=30, ha="right")
        axis.set_ylabel("Dice %, mean over organs; bar: 95 % interval")
        axis.legend()
    return figure


def _bars(numbers: pd.DataFrame) -> np.ndarray:
    """Lengths of the interval to both sides of the mean; 0 for a single patient, which has none."""
    ends = np.stack([numbers[MEAN] - numbers["low"], numbers["high"] - numbers[MEAN]])
    return np.nan_to_num(ends).clip(min=0)
