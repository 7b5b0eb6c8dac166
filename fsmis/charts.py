"""The figure of a report: a sweep as lines, other runs as bars."""

import pandas as pd
from matplotlib.figure import Figure

# Settings that make a horizontal axis, and its label.
SWEPT = {
    "support_set.count": "support copies",
    "support_set.per_query_slice": "augmented copies for each query slice",
}


def draw(frame: pd.DataFrame, settings: list[str], organs: list[str]) -> Figure:
    """Draw the table of a report.

    Args:
        frame: the table (see ``report.collect``).
        settings: its columns of settings.
        organs: its columns of organs.

    Returns:
        Mean Dice against the number of support copies, a line for each combination of the other
        settings, where that number differs; otherwise bars of each organ, grouped by organ.
    """
    swept = [name for name in SWEPT if name in settings and frame[name].nunique() > 1]
    return _lines(frame, swept[0], settings) if swept else _bars(frame, settings, organs)


def _lines(frame: pd.DataFrame, swept: str, settings: list[str]) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    runs = frame.assign(line=_labels(frame, [name for name in settings if name != swept]))
    for line, points in runs.dropna(subset=[swept]).groupby("line", sort=False):
        points = points.sort_values(swept)
        axis.plot(points[swept], points["mean"], marker="o", label=line)
    without = runs[runs[swept].isna()]
    for dice, line in zip(without["mean"], without["line"], strict=True):
        axis.axhline(dice, linestyle=":", color="grey")
        axis.text(1, dice, line, transform=axis.get_yaxis_transform(), ha="right", va="bottom")
    axis.set_xscale("log", base=2)
    ticks = sorted(runs[swept].dropna().unique())
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xlabel(SWEPT[swept])
    axis.set_ylabel("mean Dice %")
    axis.legend()
    return figure


def _bars(frame: pd.DataFrame, settings: list[str], organs: list[str]) -> Figure:
    figure = Figure(figsize=(max(7, 1.6 * len(organs) + 2), 4.5), layout="constrained")
    axis = figure.subplots()
    bars = frame[[*organs, "mean"]].T.set_axis(_labels(frame, settings), axis="columns")
    bars.plot.bar(ax=axis, rot=0, width=0.8)
    axis.set_ylim(0, 100)
    axis.set_ylabel("Dice %")
    axis.legend(fontsize="small")
    return figure


def _labels(frame: pd.DataFrame, settings: list[str]) -> list[str]:
    """Name of every run: what is not the same for all, and whether it is partial."""
    constant = [name for name in ("dataset", "method", "protocol") if frame[name].nunique() == 1]
    names = [name for name in ("dataset", "method", "protocol", *settings) if name not in constant]
    labels = []
    for run in frame.to_dict("records"):
        named = [
            str(run[name]) if "." not in name else f"{name.split('.')[-1]}={run[name]}"
            for name in names
            if pd.notna(run[name])
        ]
        partial = " (partial)" if run["covered"].startswith("partial") else ""
        labels.append((", ".join(named) or run["method"]) + partial)
    return labels
