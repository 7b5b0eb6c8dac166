"""Seconds against the number of query slices, organs and support copies: a table and a figure."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from fsmis.bench.measure import Way, clock
from fsmis.bench.ways import Perceptual, TwoFrame
from fsmis.bench.workload import Workload

TICKS = (1, 2, 5)  # of each power of ten
AXES = {
    "query slices": "two-frame step",
    "organs": "two-frame step",
    "support copies": "LPIPS of all pairs",
}


def measure_scaling(
    work: Workload,
    stage3: TwoFrame,
    stage2: Perceptual,
    known: Mapping[str, Sequence[Way]],
) -> pd.DataFrame:
    """Time all ways on parts of a workload, once each.

    Slices in a quarter, half and all, organs from 1 to all with a quarter of the slices, copies in
    a quarter, half, all but the last point.

    Args:
        work: of S slices, K organs and 2 N copies.
        stage3: the two-frame step.
        stage2: LPIPS.
        known: measured already, by axis: the points S and N.

    Returns:
        Columns ``axis``, ``value``, ``way``, ``seconds``.
    """
    slices, organs, copies = len(work.queries), work.masks.shape[1], len(work.copies) // 2
    few = max(slices // 4, 1)
    rows = _rows("query slices", slices, known["query slices"])
    rows += _rows("support copies", copies, known["support copies"])
    for value in _below(slices):
        rows += _clocked("query slices", value, stage3.ways(work.part(value, organs, copies)))
    for value in range(1, organs + 1):
        rows += _clocked("organs", value, stage3.ways(work.part(few, value, copies)))
    for value in (*_below(copies), 2 * copies):
        rows += _clocked("support copies", value, stage2.ways(work.part(slices, organs, value)))
    return pd.DataFrame(rows).sort_values(["axis", "way", "value"], ignore_index=True)


def draw_scaling(frame: pd.DataFrame, title: str) -> Figure:
    """A panel for each axis, a line for each way; both axes logarithmic."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    panels = figure.subplots(1, len(AXES))
    for panel, (axis, stage) in zip(panels, AXES.items(), strict=True):
        points = frame[frame["axis"] == axis]
        for way, line in points.groupby("way", sort=False):
            panel.plot(line["value"], line["seconds"], marker="o", label=way)
        values = sorted(points["value"].unique())
        panel.set(title=stage, xlabel=axis, ylabel="seconds", xscale="log", yscale="log")
        panel.set_xticks(values, [str(value) for value in values])
        panel.yaxis.set_major_locator(LogLocator(subs=TICKS))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.legend(fontsize="small")
    return figure


def _below(value: int) -> list[int]:
    return sorted({max(value // 4, 1), max(value // 2, 1)} - {value})


def _clocked(axis: str, value: int, ways: list[Way]) -> list[dict[str, object]]:
    clock(ways, repeats=1)
    return _rows(axis, value, ways)


def _rows(axis: str, value: int, ways: Sequence[Way]) -> list[dict[str, object]]:
    return [{"axis": axis, "value": value, "way": way.name, "seconds": way.median} for way in ways]
