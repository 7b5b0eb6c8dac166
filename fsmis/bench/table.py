"""What was measured as one table, for a file and for the terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fsmis.bench.measure import Way
from fsmis.runs.display import console

FORMATS = {
    "seconds": "{:.3g}",
    "gflop": "{:.4g}",
    **dict.fromkeys(("times_faster", "of_floor", "gflop_of_floor"), "{:.2f}"),
    "peak_mb": "{:.0f}",
    "difference": "{:.1e}",
    "foreground_percent": "{:.1f}",
}


def tabulate(two_frame: Sequence[Way], lpips: Sequence[Way]) -> pd.DataFrame:
    """A row for each way of each stage, then, if both were measured, both together.

    The first way of a stage is its reference, the last its floor, the one before that ours.

    Returns:
        Columns ``stage``, ``way``; ``seconds`` (median), ``times_faster`` than the reference,
        ``of_floor`` (seconds over the floor's); ``gflop``, ``gflop_of_floor``; ``peak_mb``; a count
        for each network; ``difference``, the largest to the reference (of logits absolute, of
        distances relative); ``flipped_pixels`` and ``foreground_percent`` of masks;
        ``same_nearest`` copy for every slice. Empty where one does not apply.
    """
    stages = {
        "two-frame": [_row(way) | _logits(way, two_frame[0]) for way in two_frame],
    }
    if lpips:
        first = stages["two-frame"]
        second = stages["LPIPS"] = [_row(way) | _distances(way, lpips[0]) for way in lpips]
        stages["both"] = [
            {name: first[i][name] + second[i][name] for name in ("seconds", "gflop")} | {"way": way}
            for i, way in ((0, "reference"), (-2, "ours"), (-1, "floor"))
        ]
    rows = []
    for stage, ways in stages.items():
        for way in ways:
            ratios = {
                "times_faster": ways[0]["seconds"] / way["seconds"],
                "of_floor": way["seconds"] / ways[-1]["seconds"],
                "gflop_of_floor": way["gflop"] / ways[-1]["gflop"],
            }
            rows.append({"stage": stage} | way | ratios)
    shared = ["stage", "way", "seconds", "times_faster", "of_floor", "gflop", "gflop_of_floor"]
    columns = dict.fromkeys(shared) | dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame(rows, columns=list(columns)).convert_dtypes()


def show(title: str, frame: pd.DataFrame, notes: Sequence[str]) -> None:
    """Print the table of :func:`tabulate` stage by stage, with notes below."""
    console.print(title)
    for stage, rows in frame.groupby("stage", sort=False):
        rows = rows.drop(columns="stage").dropna(axis=1, how="all")
        grid = Table(title=str(stage), title_justify="left", box=SIMPLE_HEAD)
        for name in map(str, rows):
            way = name == "way"
            heading = name.replace("_", " ")
            longest = max(map(len, heading.split()))  # break headings between words alone
            grid.add_column(
                heading, justify="left" if way else "right", no_wrap=way, min_width=longest
            )
        for _, row in rows.iterrows():
            grid.add_row(*(_text(name, value) for name, value in row.items()))
        console.print(grid)
    for note in notes:
        console.print(note)


def _text(column: Any, value: Any) -> str:
    return "–" if pd.isna(value) else FORMATS.get(column, "{}").format(value)


def _row(way: Way) -> dict[str, Any]:
    measured = {"seconds": way.median, "gflop": way.gflop, "peak_mb": way.peak_mb}
    return {"way": way.name} | measured | way.counts


def _logits(way: Way, reference: Way) -> dict[str, Any]:
    if way.result is None or reference.result is None:
        return {}
    return {
        "difference": np.abs(way.result - reference.result).max(),
        "flipped_pixels": ((way.result > 0) != (reference.result > 0)).sum(),
        "foreground_percent": 100 * (way.result > 0).mean(),
    }


def _distances(way: Way, reference: Way) -> dict[str, Any]:
    if way.result is None or reference.result is None:
        return {}
    return {
        "difference": (np.abs(way.result - reference.result) / reference.result).max(),
        "same_nearest": (way.result.argmin(1) == reference.result.argmin(1)).all(),
    }
