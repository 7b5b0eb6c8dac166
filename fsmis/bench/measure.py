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
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fsmis.runs.display import errors

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


def count(ways: Sequence[Way], networks: Sequence[Network]) -> None:
    """One run of each way that counts, which also warms it up."""
    for way in ways:
        # Other attention kernels of the CPU are invisible to torch's counter.
        with (
            _counting(networks, way.counts),
            FlopCounterMode(display=False) as flops,
            sdpa_kernel(SDPBackend.MATH),
        ):
            way.run()
        way.gflop = flops.get_total_flops() / 1e9


def clock(ways: Sequence[Way], repeats: int) -> None:
    """Timed rounds of all ways in turns."""
    for _ in range(repeats):
        for way in ways:
            way.result = None
            before = _reset_peak()
            start = time.perf_counter()
            way.result = way.run()
            way.seconds.append(time.perf_counter() - start)
            errors.print(f"{way.name}: {way.seconds[-1]:.3g} s")
            way.peak_mb = max(way.peak_mb, _resident("VmHWM") - before)


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
