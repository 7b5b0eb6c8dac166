"""Seconds, memory, operations and network passes of several ways to one result."""

import ctypes
import gc
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fsmis.cli import console, errors
from fsmis.pipeline.matching import ROUNDING
from fsmis.tools.bench import OURS_ROUNDED

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # unknown to torch's counter
PROCESS = Path("/proc/self")  # Linux alone tells and resets the peak of a process


@dataclass(frozen=True)
class Network:
    """A network whose passes are counted.

    Attributes:
        column: name of the count.
        module: the network; several may share a column.
        rows: how many images or rows one call passes, from its (args, kwargs).
    """

    column: str
    module: nn.Module
    rows: Callable[[tuple[Any, ...], dict[str, Any]], int]


@dataclass
class Way:
    """One way to the result, and what was measured of it.

    Attributes:
        name: in the table.
        run: computes the result; None from a floor, which has none.
        counts: rows that passed each counted network in one run, and image files written.
        gflop: of one run, a multiplication and an addition being two operations.
        seconds: of each timed run.
        peak_mb: largest resident memory that a timed run added to the process, MB; NaN where the
            system does not tell.
        result: of the last run.
    """

    name: str
    run: Callable[[], np.ndarray | None]
    counts: Counter[str] = field(default_factory=Counter)
    gflop: float = 0
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0
    result: np.ndarray | None = None

    @property
    def median(self) -> float:
        """Median of the timed runs, seconds."""
        return statistics.median(self.seconds)


def count(ways: Sequence[Way], networks: Sequence[Network], timed: bool = False) -> None:
    """One run of each way that counts, which also warms it up; or is the timed one, where a run
    is so long that neither counting nor a cold start matters."""
    for way in ways:
        counter = FlopCounterMode(display=False, custom_mapping={FUSED: _of_attention})
        with _counting(networks, way.counts), counter as flops:
            if timed:
                _clocked(way)
            else:
                way.run()
        way.gflop = flops.get_total_flops() / 1e9


def clock(ways: Sequence[Way], repeats: int) -> None:
    """Timed rounds of all ways in turns."""
    for _ in range(repeats):
        for way in ways:
            _clocked(way)


def _clocked(way: Way) -> None:
    way.result = None
    before = _reset_peak()
    start = time.perf_counter()
    way.result = way.run()
    way.seconds.append(time.perf_counter() - start)
    errors.print(f"{way.name}: {_text('seconds', way.seconds[-1])} s")
    way.peak_mb = max(way.peak_mb, _resident("VmHWM") - before)


def _of_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


@contextmanager
def _counting(networks: Sequence[Network], counts: Counter[str]) -> Iterator[None]:
    def count(network: Network) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            counts[network.column] += network.rows(args, kwargs)

        return hook

    def save(image: Image.Image, *args: Any, **kwargs: Any) -> None:
        counts["image_files"] += 1
        written(image, *args, **kwargs)

    written = Image.Image.save
    counts.update({network.column: 0 for network in networks} | {"image_files": 0})
    handles = [n.module.register_forward_pre_hook(count(n), with_kwargs=True) for n in networks]
    try:
        with mock.patch.object(Image.Image, "save", save):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _reset_peak() -> float:
    """Give freed memory back to the system and forget the peak; the resident memory now, MB."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return float("nan")
    return _resident("VmRSS")


def _resident(entry: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process, MB."""
    try:
        found = re.search(rf"{entry}:\s+(\d+) kB", (PROCESS / "status").read_text())
    except OSError:
        return float("nan")
    return int(found[1]) / 1024 if found else float("nan")


SIGNIFICANT = {"seconds": 3, "gflop": 4}  # digits, below 1000
FORMATS = {
    **dict.fromkeys(("times_faster", "of_floor", "gflop_of_floor"), "{:.2f}"),
    "peak_mb": "{:.0f}",
    "difference": "{:.1e}",
    "foreground_percent": "{:.1f}",
    **dict.fromkeys(("alike", "dice"), "{:.4f}"),
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
        ours = [row for row in first if row["way"] in ("ours", OURS_ROUNDED)]
        pairs = [("reference", first[0], second[0])]
        pairs += [(row["way"], row, second[-2]) for row in ours]
        pairs += [("floor", first[-1], second[-1])]
        stages["both"] = [
            {name: one[name] + other[name] for name in ("seconds", "gflop")} | {"way": way}
            for way, one, other in pairs
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
    if pd.isna(value):
        return "–"
    if column in SIGNIFICANT:
        return f"{value:.{SIGNIFICANT[column]}g}" if value < 1000 else f"{value:.0f}"
    return FORMATS.get(column, "{}").format(value)


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
    # of an image and nearly itself, the distance is lost in the rounding of the others
    least = ROUNDING * reference.result.max()
    relative = np.abs(way.result - reference.result) / np.maximum(reference.result, least)
    return {
        "difference": relative.max(),
        "same_nearest": (way.result.argmin(1) == reference.result.argmin(1)).all(),
    }
