"""What must hold of a measured table, whatever the machine, and the speed that is aimed at."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from fsmis.bench.workload import Workload

LOGITS = 2e-4  # largest difference of two correct implementations
FLIPPED = 1e-5  # of all mask pixels
DISTANCES = 1e-4  # relative
FASTER = {"two-frame": {256: 2.5, 1024: 2.0}, "LPIPS": {128: 25.0}, "both": {256: 3.5}}
WORK = "(with 32 slices, 4 organs, 64 copies)"  # fewer slices share less


@dataclass(frozen=True)
class Promise:
    """A statement about ours, and whether it holds.

    Attributes:
        text: with the number measured.
        holds: as measured.
        binding: equality and counts, which no busy machine excuses.
    """

    text: str
    holds: bool
    binding: bool = True


def promises(
    table: pd.DataFrame, work: Workload, image_size: int, lpips_size: int
) -> list[Promise]:
    """All promises about a table of ``fsmis.bench.table.tabulate``.

    Args:
        table: measured.
        work: what it was measured on.
        image_size, lpips_size: pixels SAM2 and LPIPS see.
    """
    ours = table[table["way"] == "ours"].set_index("stage")
    slices, copies, organs = len(work.queries), len(work.copies), work.masks.shape[1]
    matched = len(set(work.matched))
    step = ours.loc["two-frame"]
    pixels = slices * work.masks[0].size
    found = [
        _at_most("image encodes", step["image_encodes"], slices + matched),
        _at_most("memory attention rows", step["attention_rows"], slices * organs),
        _at_most("memory encoder rows", step["memory_rows"], matched * organs),
        _at_most("image files", step["image_files"], 0),
        _at_most("difference of logits", step["difference"], LOGITS),
        _at_most("flipped share of mask pixels", step["flipped_pixels"] / pixels, FLIPPED),
    ]
    if "LPIPS" in ours.index:
        lpips = ours.loc["LPIPS"]
        found += [
            _at_most("backbone images", lpips["backbone_images"], slices + copies),
            _at_most("relative difference of LPIPS", lpips["difference"], DISTANCES),
            Promise("same nearest copies", bool(lpips["same_nearest"])),
        ]
    sizes = {"two-frame": image_size, "LPIPS": lpips_size, "both": image_size}
    for stage, row in ours.iterrows():
        target = FASTER[str(stage)].get(sizes[str(stage)])
        if target:
            faster = row["times_faster"]
            text = f"{stage}: {faster:.2f} times faster, aimed at {target:g} {WORK}"
            found.append(Promise(text, bool(faster >= target), binding=False))
    return found


def _at_most(name: str, value: Any, limit: float) -> Promise:
    return Promise(f"{name}: {value:.4g}, at most {limit:g}", bool(value <= limit))
