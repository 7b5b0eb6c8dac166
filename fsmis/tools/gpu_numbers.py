"""What a GPU computes against a CPU, how fast, and in how much memory: checks in this process."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose
from omegaconf import OmegaConf

from fsmis.segmenters.sam2 import Sam2
from fsmis.settings import composing
from fsmis.tools.bench import phantom_workload
from fsmis.tools.bench.ways import all_pairs_distances, build_lpips, make_responsive, shared_logits

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
LOGITS = 2e-4  # largest difference of CPU and GPU in float32
MASKS = 0.995  # least Dice of masks in bfloat16 and in float32
ORGANS = 4


@dataclass(frozen=True)
class Setting:
    """What is checked.

    Attributes:
        device: checked against the CPU.
        folder: for generated scans and runs.
        segmenter: the large model, with seeded random weights.
        image_size: side in pixels it sees.
        images: that a speed is measured on.
        scans: generated patients, 3 or more.
        overrides: further settings of the runs.
    """

    device: str
    folder: Path
    segmenter: str = "sam2.1_large"
    image_size: int = 1024
    images: int = 16
    scans: int = 3
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What a check found.

    Attributes:
        name: of the check.
        value: measured, or the reason of a skip or an error.
        bound: that it is held to; empty for what is only measured.
        outcome: passed, failed or skipped.
        seconds: the check took.
    """

    name: str
    value: str
    bound: str = ""
    outcome: str = PASSED
    seconds: float = 0


def verdict(value: str, bound: str, holds: bool) -> Row:
    """A row, named by :func:`perform`, of something that is held to a bound."""
    return Row("", value, bound, PASSED if holds else FAILED)


def build(
    setting: Setting, name: str, device: str, precision: str | None = None, **more: Any
) -> Sam2:
    """A segmenter of ``conf/segmenter``; the large one with random weights, the same everywhere."""
    with composing():
        overrides = [f"segmenter={name}", f"device={device}", "cache.dir=null"]
        config = compose("config", overrides=overrides)
    settings: Any = OmegaConf.to_container(config, resolve=True)
    settings = settings["segmenter"] | {"cache": None}
    del settings["_target_"]
    if name == setting.segmenter:
        settings |= {"checkpoint": "random", "image_size": setting.image_size}
    segmenter = Sam2(**settings | {"precision": precision} | more)
    if settings["checkpoint"] == "random":
        make_responsive(segmenter.model, seed=0)
    return segmenter


@cache
def logits(setting: Setting, name: str, device: str, precision: str) -> np.ndarray:
    """Logits ``[2, 4, 256, 256]`` of two generated slices, organs from copies of another's."""
    work = phantom_workload(2, ORGANS, 2, seed=0)
    # cuDNN rounds the inputs of float32 convolutions to 10 bits where nobody forbids it
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return shared_logits(build(setting, name, device, precision), work)


def same_logits(setting: Setting, name: str) -> Row:
    """Float32 on both devices."""
    one, other = (logits(setting, name, device, "float32") for device in ("cpu", setting.device))
    difference = float(np.abs(one - other).max())
    spread = f"{difference:.1e}, of logits with deviation {one.std():.2g}"
    return verdict(spread, f"at most {LOGITS:g}", difference <= LOGITS)


def same_masks(setting: Setting, name: str) -> Row:
    """Bfloat16 on the device against float32 on the CPU."""
    one = logits(setting, name, "cpu", "float32") > 0
    other = logits(setting, name, setting.device, "bfloat16") > 0
    dice = float(2 * (one & other).sum() / max(one.sum() + other.sum(), 1))
    return verdict(f"Dice {dice:.4f}", f"at least {MASKS}", dice >= MASKS)


def timed(setting: Setting, work: Callable[[], object]) -> float:
    """Median seconds of three runs after one to warm up; on a CPU, which is no news, of one."""
    seconds = []
    for _ in range(4 if setting.device.startswith("cuda") else 2):
        start = time.perf_counter()
        work()
        if setting.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def speed(setting: Setting, name: str) -> Row:
    """Images encoded, and rows answered from memories that are given."""
    segmenter = build(setting, name, setting.device)
    work = phantom_workload(setting.images, ORGANS, 1, seed=0)
    encode = timed(setting, lambda: segmenter.encode(work.queries))
    features = segmenter.encode(work.queries)
    rows = np.arange(len(features)).repeat(ORGANS)[: segmenter.batch_size]
    prompt = segmenter.encode(work.copies)[[0] * ORGANS]
    memory = segmenter.memorise(prompt, work.masks[0])[np.arange(len(rows)) % ORGANS]
    size = work.queries.shape[1:]
    answer = timed(setting, lambda: segmenter.segment(features[rows], [memory], size))
    memorise = timed(setting, lambda: segmenter.memorise(prompt, work.masks[0]))
    megabytes = sum(level[:1].nbytes for level in features.levels) / 1e6
    return Row(
        "",
        f"{len(features) / encode:.3g} images, {len(rows) / answer:.3g} rows, "
        f"{ORGANS / memorise:.3g} memories a second; {megabytes:.3g} MB of features an image",
    )


def pairs(setting: Setting) -> Row:
    """LPIPS of all pairs, random backbone."""
    matcher = build_lpips(128, seed=0, device=setting.device)
    work = phantom_workload(setting.images, 1, 4 * setting.images, seed=0)
    seconds = timed(setting, lambda: all_pairs_distances(matcher, work))
    return Row("", f"{len(work.queries) * len(work.copies) / seconds:.4g} pairs a second")


def peak_memory(setting: Setting) -> Row:
    """Of the large model, its weights included."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(setting.device)
    segmenter = build(setting, setting.segmenter, setting.device)
    work = phantom_workload(segmenter.batch_size, ORGANS, 2, seed=0)
    shared_logits(segmenter, work)
    peak = torch.cuda.max_memory_allocated(setting.device) / 1e9
    there = torch.cuda.get_device_properties(setting.device).total_memory / 1e9
    return verdict(f"{peak:.2f} GB", f"below {there:.0f} GB", peak < there)


def compiled(setting: Setting) -> Row:
    """``segmenter.compile=true``, its warm-up told apart."""
    work = phantom_workload(setting.images, 1, 1, seed=0)
    found = []
    for compile in (False, True):
        start = time.perf_counter()
        segmenter = build(setting, setting.segmenter, setting.device, compile=compile)
        building = time.perf_counter() - start
        seconds = timed(setting, partial(segmenter.encode, work.queries))
        found.append((building, setting.images / seconds))
    (plain, eager), (warm, fast) = found
    return Row(
        "", f"{fast:.3g} images a second, not compiled {eager:.3g}; {warm - plain:.0f} s once"
    )
