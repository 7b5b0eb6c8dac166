"""What all paths of a benchmark are given: query slices, augmented copies and their masks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fsmis.cli import CONF_DIR
from fsmis.tools.phantom import BRIGHTEST, generate

GREYS = 255  # images have 8 bits, so that a file between two steps loses nothing


@dataclass(frozen=True)
class Workload:
    """One support slice's copies and the query slices they serve.

    Attributes:
        queries: float32 ``[S, H, W]`` in [0, 1], all different.
        copies: float32 ``[N, H, W]`` in [0, 1]; the second one (of one, that) is
            nearly the first query.
        masks: bool ``[N, K, H, W]``, organs of each copy, none empty.
    """

    queries: np.ndarray
    copies: np.ndarray
    masks: np.ndarray

    @property
    def matched(self) -> np.ndarray:
        """Copy that prompts each query slice, int ``[S]``.

        Every slice has its own as long as there are enough: nothing is gained from slices that
        share one, as in practice some do.
        """
        return np.arange(len(self.queries)) % len(self.copies)

    def part(self, slices: int, organs: int, copies: int) -> Workload:
        """The first of each."""
        return Workload(self.queries[:slices], self.copies[:copies], self.masks[:copies, :organs])


def phantom_workload(slices: int, organs: int, copies: int, seed: int) -> Workload:
    """Query slices and the support set of another patient, all generated.

    Args:
        slices: S.
        organs: K, up to 4.
        copies: N, made by ``conf/support_set/default.yaml``.
        seed: of patients and copies.
    """
    labels = list(OmegaConf.load(CONF_DIR / "dataset" / "phantom.yaml").organs.values())[:organs]
    image, label, _ = generate("abdomen", seed, scan=1)
    areas = np.stack([(label == organ).sum((1, 2)) for organ in labels])
    z = areas.min(0).argmax()  # the slice that shows all organs best
    settings = OmegaConf.load(CONF_DIR / "support_set" / "default.yaml")
    support = instantiate(settings, count=copies, per_query_slice=None, kind="both", seed=seed)
    masks = {str(organ): label[z] == organ for organ in labels}
    made = support.construct(_grey(image[z]), masks, n_query=slices, key="bench")

    patients: list[np.ndarray] = []
    for scan in count(start=2):
        image, label, _ = generate("abdomen", seed, scan)
        patients.append(image[label.any((1, 2))])
        if sum(map(len, patients)) >= slices:
            break
    queries = _grey(np.concatenate(patients)[:slices])
    images = _grey(BRIGHTEST * made.images)
    images[min(1, copies - 1)] = np.clip(
        queries[0] + np.eye(*queries[0].shape, dtype=np.float32) / GREYS, 0, 1
    )
    return Workload(queries, images, np.stack(list(made.masks.values()), axis=1))


def _grey(stored: np.ndarray) -> np.ndarray:
    """Stored values as float32 in [0, 1] of 8 bits."""
    grey = np.round(np.clip(stored / BRIGHTEST, 0, 1) * GREYS)
    return (grey / GREYS).astype(np.float32)


LOGITS = 2e-4  # largest difference of two correct implementations
FLIPPED = 1e-5  # of all mask pixels
DISTANCES = 1e-4  # relative
TOGETHER = "public, organs together"
ROUNDED = " (bfloat16)"
OURS_ROUNDED = f"ours{ROUNDED}"
# by stage and way, and by the pixels a network sees; in bfloat16 on CPUs that have it
FASTER = {
    ("two-frame", "ours"): {256: 2.5, 1024: 2.0},
    ("two-frame", OURS_ROUNDED): {1024: 4.0},
    ("LPIPS", "ours"): {128: 25.0},
    ("both", "ours"): {256: 3.5},
    ("both", OURS_ROUNDED): {256: 5.0},
}
FASTER_THAN_TOGETHER = {1024: 1.6}
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
    """All promises about a table of ``fsmis.tools.bench.measure.tabulate``.

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
        at_most("image encodes", step["image_encodes"], slices + matched),
        at_most("memory attention rows", step["attention_rows"], slices * organs),
        at_most("memory encoder rows", step["memory_rows"], matched * organs),
        at_most("image files", step["image_files"], 0),
        at_most("difference of logits", step["difference"], LOGITS),
        at_most("flipped share of mask pixels", step["flipped_pixels"] / pixels, FLIPPED),
    ]
    if "LPIPS" in ours.index:
        lpips = ours.loc["LPIPS"]
        found += [
            at_most("backbone images", lpips["backbone_images"], slices + copies),
            at_most("relative difference of LPIPS", lpips["difference"], DISTANCES),
            Promise("same nearest copies", bool(lpips["same_nearest"])),
        ]
    sizes = {"two-frame": image_size, "LPIPS": lpips_size, "both": image_size}
    faster = table.set_index(["stage", "way"])["times_faster"].astype(float).to_dict()
    for (stage, way), targets in FASTER.items():
        target = targets.get(sizes[stage])
        if target and (stage, way) in faster:
            found.append(aim(f"{stage}, {way}", faster[stage, way], target))
    target = FASTER_THAN_TOGETHER.get(image_size)
    if target and ("two-frame", OURS_ROUNDED) in faster:
        ratio = faster["two-frame", OURS_ROUNDED] / faster["two-frame", TOGETHER]
        found.append(aim(f"two-frame, {OURS_ROUNDED} by {TOGETHER}", ratio, target))
    return found


def aim(name: str, faster: float, target: float) -> Promise:
    """That a ratio of seconds is reached, which a busy machine excuses."""
    text = f"{name}: {faster:.2f} times faster, aimed at {target:g} {WORK}"
    return Promise(text, bool(faster >= target), binding=False)


def at_most(name: str, value: Any, limit: float) -> Promise:
    """That a value which no busy machine excuses does not exceed a limit."""
    return Promise(f"{name}: {value:.4g}, at most {limit:g}", bool(value <= limit))
