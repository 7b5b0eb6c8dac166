"""Speed and equality against the reference path: ``python -m fsmis bench [--out FOLDER]``.

The reference is the public ``SAM2VideoPredictor`` over a folder of frames and the ``lpips`` package
pair by pair; ours does the same in memory, each image through each network once. Same pixels, same
seeded random weights, same process, in turns; on the CPU. Then a whole volume with the shipped
weights, and what the extent and zoom stages add to the default. Exit code 1 where the answers
differ or an image passes a network more often than promised.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from fsmis.cli import CONF_DIR, SOME_FAILED, command_line, console
from fsmis.files import write_atomic, write_figure
from fsmis.pipeline.distances import BACKBONES
from fsmis.tools.bench import ROUNDED, Promise, Workload, phantom_workload, promises
from fsmis.tools.bench.measure import Way, clock, count, show, tabulate
from fsmis.tools.bench.ways import Perceptual, TwoFrame
from fsmis.tools.bench.whole_volume import (
    LABELS,
    Case,
    WholeVolume,
    tabulate_volume,
    volume_promises,
)

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
        rows += _clocked(
            "query slices", value, stage3.ways(work.part(value, organs, copies), bfloat16=False)
        )
    for value in range(1, organs + 1):
        rows += _clocked(
            "organs", value, stage3.ways(work.part(few, value, copies), bfloat16=False)
        )
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


NOTES = [
    "times faster: median seconds of the reference (first row) over those of the row.",
    "of floor: median seconds of the row over those of the floor, every distinct image through the "
    "encoder (LPIPS: backbone) once and nothing else.",
    "peak MB: resident memory a run added to the process at its peak (VmHWM - VmRSS at its start; "
    "Linux only).",
    "difference: the largest to the reference, of logits absolute, of LPIPS relative; flipped "
    "pixels: of all masks, (slices x organs) of 256 x 256.",
    "gflop: by torch's counter; a multiplication and an addition are two operations.",
    "The reference reads its frames losslessly, as PNG; writing them is part of its seconds.",
    "Every slice is prompted by a copy of its own where there are enough: the dearest case.",
]
VOLUME_NOTES = [
    "times faster: median seconds of the first row of the table over those of the row.",
    "alike: mean Dice of the labels with those of the first row, from which rounding leads away "
    "along a video; dice: with the truth.",
    "Models and supports are loaded before; frames as above.",
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables and what they prove, write CSV files and a figure."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    with command_line():
        tables, broken = compare(options)
        if options.out:
            write_atomic(options.out / "ratios.csv", tables.to_csv(index=False).encode())
    if broken:
        raise SystemExit(SOME_FAILED)


def compare(options: argparse.Namespace) -> tuple[pd.DataFrame, int]:
    """All tables, one below the other, and how many binding promises are broken."""
    parts = [part for name, part in PARTS.items() if options.only in (None, name)]
    found = [part(options) for part in parts]
    return pd.concat([table for table, _ in found]), sum(broken for _, broken in found)


def compare_steps(options: argparse.Namespace) -> tuple[pd.DataFrame, int]:
    """The two-frame step and, unless it is asked for alone, LPIPS and how both scale."""
    sizes = options.slices, options.organs, options.copies
    wide = phantom_workload(options.slices, options.organs, 2 * options.copies, options.seed)
    work = wide.part(*sizes)
    stage3 = TwoFrame(options.segmenter, options.image_size, options.seed)
    stage2 = Perceptual(options.lpips_size, options.seed)
    steps = measured(stage3, work, options.repeats)
    lpips = measured(stage2, work, options.repeats) if options.only is None else []
    table = tabulate(steps, lpips)
    title = heading(options, options.image_size, work)
    found = promises(table, work, options.image_size, options.lpips_size)
    broken = report(title, table, NOTES, found)
    if options.out and lpips:
        exact = [way for way in steps if not way.name.endswith(ROUNDED)]
        known = {"query slices": exact, "support copies": lpips}
        scaling = measure_scaling(wide, stage3, stage2, known)
        write_atomic(options.out / "scaling.csv", scaling.to_csv(index=False).encode())
        write_figure(options.out / "scaling.png", draw_scaling(scaling, title))
    return table.assign(image_size=options.image_size, slices=options.slices), broken


def compare_volume(options: argparse.Namespace) -> tuple[pd.DataFrame, int]:
    """A whole volume by the public predictors and by ours, and the budget of the default."""
    size, slices = options.volume_size, options.volume_slices
    with tempfile.TemporaryDirectory() as folder:
        case = Case.write(Path(folder), slices, options.seed)
        volume = WholeVolume(case, size, options.settings)
        stages = {"volume": volume.ways(), "budget": volume.budget()}
        for ways in stages.values():
            count(ways, volume.networks(), timed=not options.repeats)
            clock(ways, options.repeats)
    table = tabulate_volume(stages, case.truth)
    title = (
        f"sam2_mini at {size} px; {slices} slices, {len(LABELS)} labels, from the query's file to "
        f"the written one; {'; '.join([*options.settings, measured_as(options)])}"
    )
    broken = report(title, table, VOLUME_NOTES, volume_promises(table, slices))
    return table.assign(image_size=size, slices=slices), broken


PARTS = {"two-frame": compare_steps, "volume": compare_volume}


def measured(stage: TwoFrame | Perceptual, work: Workload, repeats: int) -> list[Way]:
    """The ways of a stage, counted and timed; without ``repeats``, in one and the same run."""
    ways = stage.ways(work)
    count(ways, stage.networks(), timed=not repeats)
    clock(ways, repeats)
    return ways


def report(
    title: str, table: pd.DataFrame, notes: Sequence[str], promised: Sequence[Promise]
) -> int:
    """Print a table and what it proves; returns how many binding promises are broken."""
    show(title, table, notes)
    broken = 0
    for promise in promised:
        verdict = "kept" if promise.holds else "BROKEN" if promise.binding else "not reached"
        console.print(f"{verdict}: {promise.text}")
        broken += promise.binding and not promise.holds
    return broken


def heading(options: argparse.Namespace, image_size: int, work: Workload) -> str:
    """What was measured, where."""
    return (
        f"{options.segmenter} at {image_size} px, LPIPS at {options.lpips_size} px; "
        f"{len(work.queries)} slices, {options.organs} organs, {options.copies} copies; "
        f"{measured_as(options)}"
    )


def measured_as(options: argparse.Namespace) -> str:
    """How often and with what."""
    repeats = options.repeats
    runs = f"medians of {repeats} runs" if repeats else "one run each, timed while counted"
    return f"{runs}; threads: {options.threads}; torch {torch.__version__}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fsmis bench", description=__doc__)
    segmenters = sorted(path.stem for path in (CONF_DIR / "segmenter").glob("sam2*.yaml"))
    whole, pixels = _at_least(1), _at_least(BACKBONES["alex"].min_size)
    parser.add_argument("--segmenter", choices=segmenters, default="sam2.1_tiny")
    parser.add_argument("--image-size", type=whole, default=256, help="pixels SAM2 sees")
    parser.add_argument(
        "--only",
        choices=PARTS,
        help="measure a part: the two-frame step without LPIPS and curves, or the whole volume",
    )
    parser.add_argument("--slices", type=whole, default=32, help="query slices")
    parser.add_argument("--organs", type=int, default=4, choices=range(1, 5))
    parser.add_argument("--copies", type=whole, default=64, help="of the support slice")
    parser.add_argument(
        "--repeats",
        type=_at_least(0),
        default=3,
        help="timed runs, after one to count; 0: time that, for runs of many minutes",
    )
    parser.add_argument("--lpips-size", type=pixels, default=128, help="pixels LPIPS sees")
    parser.add_argument("--volume-slices", type=whole, default=40, help="of the whole volume")
    parser.add_argument(
        "--volume-size", type=whole, default=320, help="pixels sam2_mini sees of it"
    )
    parser.add_argument(
        "--volume-settings",
        nargs="+",
        metavar="KEY=VALUE",
        dest="settings",
        default=[],
        help="of ours in the whole volume, such as support_set.count=4",
    )
    parser.add_argument("--threads", type=whole, default=1, help="1: steady beside other work")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument(
        "--out", type=Path, help="folder for ratios.csv, scaling.csv and scaling.png"
    )
    return parser


def _at_least(lowest: int) -> Callable[[str], int]:
    """Type of an option that is a whole number from ``lowest``."""

    def number(text: str) -> int:
        if (value := int(text)) < lowest:
            raise argparse.ArgumentTypeError(f"{value} is less than {lowest}")
        return value

    return number


if __name__ == "__main__":
    main()
