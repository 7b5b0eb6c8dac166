"""The figures of a report: a sweep as lines with bands, other runs as bars."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsmis.reporting.collection import LABELS

# What the horizontal axis of a setting says; the others go by their name.
AXES = {
    "support_set.count": "support copies",
    "support_set.per_query_slice": "augmented copies for each query slice",
}


def draw(frame: pd.DataFrame, settings: list[str], organs: list[str]) -> Figure:
    """Draw the table of a report.

    Args:
        frame: the table (see ``collection.tabulate``).
        settings: its columns of settings.
        organs: its columns of organs.

    Returns:
        Mean Dice against the number of support copies, a line for each combination of the other
        settings, where that number differs; otherwise bars of each organ, grouped by organ.
    """
    curves = [name for name in AXES if name in swept(frame, settings)]
    if not curves:
        return _bars(frame, settings, organs)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    lines(figure.subplots(), frame, curves[0], settings)
    return figure


def swept(frame: pd.DataFrame, settings: list[str]) -> list[str]:
    """The settings that make a horizontal axis: numbers that differ."""
    return [
        name
        for name in settings
        if (values := frame[name].dropna()).nunique() > 1 and values.map(_is_number).all()
    ]


def lines(axis: Axes, frame: pd.DataFrame, name: str, settings: list[str]) -> None:
    """Draw mean Dice against the setting ``name``, with the interval of the mean as a band.

    A line for each combination of the other settings; runs without the setting as dotted levels.
    """
    runs = frame.assign(line=labels(frame, [other for other in settings if other != name]))
    runs[name] = pd.to_numeric(runs[name])
    for line, points in runs.dropna(subset=[name]).groupby("line", sort=False):
        points = points.sort_values(name)
        (drawn,) = axis.plot(points[name], points["mean"], marker="o", label=line)
        band = axis.fill_between(points[name], points["low"], points["high"], alpha=0.15)
        band.set(color=drawn.get_color(), linewidth=0)
    without = runs[runs[name].isna()]
    for dice, line in zip(without["mean"], without["line"], strict=True):
        axis.axhline(dice, linestyle=":", color="grey")
        axis.text(1, dice, line, transform=axis.get_yaxis_transform(), ha="right", va="bottom")
    ticks = sorted(runs[name].dropna().unique())
    if ticks[0] > 0:
        axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xlabel(AXES.get(name, name))
    axis.set_ylabel("mean Dice %")
    axis.legend()


def labels(frame: pd.DataFrame, settings: list[str]) -> list[str]:
    """Name of every run: what is not the same for all, and whether it is partial."""
    constant = [name for name in LABELS if frame[name].nunique() == 1]
    names = [name for name in [*LABELS, *settings] if name not in constant]
    named = []
    for run in frame.to_dict("records"):
        values = [  # a number says nothing without its name
            run[name]
            if "." not in name and isinstance(run[name], str)
            else f"{name.split('.')[-1]}={run[name]}"
            for name in names
            if pd.notna(run[name])
        ]
        partial = " (partial)" if run["covered"].startswith("partial") else ""
        named.append((", ".join(values) or run["method"]) + partial)
    return named


def _bars(frame: pd.DataFrame, settings: list[str], organs: list[str]) -> Figure:
    figure = Figure(figsize=(max(7, 1.6 * len(organs) + 2), 4.5), layout="constrained")
    axis = figure.subplots()
    bars = frame[[*organs, "mean"]].T.set_axis(labels(frame, settings), axis="columns")
    bars.plot.bar(ax=axis, rot=0, width=0.8)
    axis.set_ylim(0, 100)
    axis.set_ylabel("Dice %")
    axis.legend(fontsize="small")
    return figure


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
