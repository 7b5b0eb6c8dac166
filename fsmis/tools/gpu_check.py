"""Proof on a GPU: ``python -m fsmis gpu-check [--device cuda] [--out FILE]``.

Numbers of the GPU against those of the CPU, its speed and memory, and what happens when the memory
does not suffice. Without a GPU (``--device cpu``) the checks that need one are skipped by name.
Exit code 1 where a check fails.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.table import Table

from fsmis.cli import CONF_DIR, SOME_FAILED, command_line, console
from fsmis.data.protocol import Episode
from fsmis.files import now, write_atomic
from fsmis.methods.sam2_video import Sam2Single
from fsmis.segmenters.network import resolve_device
from fsmis.source import git_state
from fsmis.tools import doctor
from fsmis.tools.gpu_numbers import (
    FAILED,
    SKIPPED,
    Row,
    Setting,
    compiled,
    pairs,
    peak_memory,
    same_logits,
    same_masks,
    speed,
    verdict,
)
from fsmis.tools.phantom import write_phantom

DICE = 0.1  # largest difference of the method's mean, in points
NEEDS_GPU = "needs a GPU"
SHORT = ("method=sam2_single", "segmenter.image_size=128")  # where neither Dice nor speed counts
TESTS = Path(__file__).resolve().parents[2] / "tests"


class FillsMemory(Sam2Single):
    """A method that takes all memory of the device at scan 1."""

    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """See ``Method.segment``."""
        device = torch.device(getattr(self.segmenter, "device", "cpu"))
        block = 2**30 if device.type == "cuda" else 2**60  # no CPU has that, so nothing is filled
        held = []
        while episode.query.id == "1":
            held.append(torch.empty(block, dtype=torch.uint8, device=device))
        return super().segment(episode)


def installation(setting: Setting) -> Row:
    """What the doctor finds."""
    findings = doctor.examine()
    count = {status: sum(f.status == status for f in findings) for status in doctor.COLOURS}
    broken = [f"{f.name}: {f.detail}" for f in findings if f.status == doctor.FAIL]
    text = ", ".join(f"{number} {status}" for status, number in count.items())
    return verdict("; ".join([text, *broken]), "none fails", not broken)


def marked_tests(setting: Setting) -> Row:
    """The tests that carry the mark ``gpu``."""
    if not TESTS.is_dir():
        return Row("", "no tests beside the package", outcome=SKIPPED)
    alone = ["--numprocesses", "0"]  # one device, whose memory is measured
    command = [sys.executable, "-m", "pytest", "-q", *alone, "-m", "gpu", str(TESTS)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    summary = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1].strip("= ")
    return verdict(summary, "none fails", done.returncode == 0 and "passed" in summary)


def run(setting: Setting, results: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """``python -m fsmis run`` of the generated scans, its results in a folder of that name."""
    scans = setting.folder / "scans"
    if not scans.is_dir():
        write_phantom(scans, scans=setting.scans)
    where = [f"dataset.root={scans}", f"results_dir={setting.folder / results}"]
    command = [sys.executable, "-m", "fsmis.run", *overrides, "dataset=phantom", *where]
    command += setting.overrides
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def scores(setting: Setting, results: str) -> list[pd.DataFrame]:
    """The scores of each run in a folder of results."""
    files = sorted((setting.folder / results).glob("phantom/*/*/scores.csv"))
    return [pd.read_csv(path) for path in files]


def same_dice(setting: Setting) -> Row:
    """The default method on generated scans on both devices."""
    means, seconds = [], []
    for device in ("cpu", setting.device):
        results = f"dice on {device}"
        done = run(setting, results, f"device={device}")
        if done.returncode:
            return Row("", done.stderr.strip().splitlines()[-1], outcome=FAILED)
        (found,) = scores(setting, results)
        means.append(100 * found["dice"].mean())
        seconds.append(found["seconds"].sum() / found["query_scan"].nunique())
    texts = [
        f"{mean:.2f} in {each:.2f} s a scan" for mean, each in zip(means, seconds, strict=True)
    ]
    value = f"CPU {texts[0]}, {setting.device} {texts[1]}"
    return verdict(value, f"Dice at most {DICE} apart", abs(means[0] - means[1]) <= DICE)


def out_of_memory(setting: Setting) -> Row:
    """One scan of three takes all memory."""
    greedy = f"method._target_=fsmis.tools.gpu_check.{FillsMemory.__name__}"
    done = run(setting, "memory", *SHORT, greedy, f"device={setting.device}")
    lines = [line for line in done.stderr.splitlines() if line.startswith("scan 1 ")]
    reported = [line for line in lines if re.search("allocate|out of memory", line)]
    scored = sum(found["query_scan"].nunique() for found in scores(setting, "memory"))
    value = f"{len(reported)} line, {scored} of {setting.scans} scans scored"
    holds = len(reported) == 1 and scored == setting.scans - 1 and done.returncode == SOME_FAILED
    return verdict(value, "one line, and all other scans", holds)


def two_jobs(setting: Setting) -> Row:
    """Two runs at a time through joblib on the one device."""
    if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        return Row("", 'no joblib: pip install -e ".[joblib]"', outcome=SKIPPED)
    sweep = ["-m", *SHORT, "seed=0,1", "hydra/launcher=joblib"]
    done = run(setting, "jobs", *sweep, f"device={setting.device}")
    means = [100 * found["dice"].mean() for found in scores(setting, "jobs")]
    holds = done.returncode == 0 and len(means) == 2 and np.ptp(means) <= DICE
    value = f"exit code {done.returncode}, Dice {', '.join(f'{mean:.2f}' for mean in means)}"
    return verdict(value, f"both end, Dice at most {DICE} apart", bool(holds))


Check = Callable[[Setting], Row]


def checks(setting: Setting) -> list[tuple[str, Check, bool]]:
    """Name and function of each check, and whether it needs a GPU; what is short comes first."""
    mini, large = "sam2_mini", setting.segmenter
    big = f"{large} at {setting.image_size} px"
    return [
        ("doctor", installation, False),
        (f"float32 logits, {mini}", partial(same_logits, name=mini), True),
        (f"float32 logits, {big}", partial(same_logits, name=large), True),
        (f"bfloat16 masks, {mini}", partial(same_masks, name=mini), True),
        (f"bfloat16 masks, {big}", partial(same_masks, name=large), True),
        (f"speed, {mini}", partial(speed, name=mini), False),
        (f"speed, {big}", partial(speed, name=large), True),
        ("speed, LPIPS alex at 128 px", pairs, False),
        (f"peak memory, {big}", peak_memory, True),
        ("a scan out of memory", out_of_memory, False),
        ("two jobs through joblib", two_jobs, False),
        ("default method on both devices", same_dice, True),
        ("tests marked gpu", marked_tests, True),
        (f"compiled, {big}", compiled, True),
    ]


def perform(name: str, check: Check, needs_gpu: bool, setting: Setting) -> Row:
    """The row of a check; an error fails it, and no other."""
    if needs_gpu and not setting.device.startswith("cuda"):
        return Row(name, NEEDS_GPU, outcome=SKIPPED)
    start = time.perf_counter()
    try:
        row = check(setting)
    except Exception as error:  # anything may go wrong on a machine that was never tried
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        row = Row(name, lines[0], outcome=FAILED)
    return replace(row, name=name, seconds=time.perf_counter() - start)


def markdown(setting: Setting, rows: Sequence[Row]) -> str:
    """The report: machine and table."""
    graphics = setting.device
    if graphics.startswith("cuda"):
        graphics += f", {torch.cuda.get_device_name(setting.device)}, CUDA {torch.version.cuda}"
    commit = (git_state() or {"commit": "unknown"})["commit"][:12]
    machine = f"{graphics}; {os.cpu_count()} CPU cores; torch {torch.__version__}"
    head = ["# GPU check", "", "`python -m fsmis gpu-check`, " + now()[:10] + f", commit {commit}"]
    cells = [[r.name, r.value, r.bound, r.outcome, f"{r.seconds:.0f}"] for r in rows]
    table = [["check", "measured", "bound", "outcome", "seconds"], ["---"] * 5, *cells]
    lines = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in table]
    return "\n".join([*head, "", machine, "", *lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Check one after the other; the report is written anew after each."""
    parser = argparse.ArgumentParser(prog="python -m fsmis gpu-check", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, default=Path("results/reference/gpu.md"))
    segmenters = sorted(path.stem for path in (CONF_DIR / "segmenter").glob("sam2*.yaml"))
    parser.add_argument("--segmenter", choices=segmenters, default=Setting.segmenter)
    parser.add_argument("--image-size", type=int, default=Setting.image_size, help="pixels it sees")
    parser.add_argument("--images", type=int, help="to measure speed on (16, 4 on a CPU)")
    parser.add_argument("overrides", nargs="*", help="further settings of the runs, key=value")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    with command_line(), tempfile.TemporaryDirectory() as folder:
        device = str(resolve_device(options.device))
        images = options.images or (Setting.images if device.startswith("cuda") else 4)
        few = options.segmenter, options.image_size, images
        setting = Setting(device, Path(folder), *few, overrides=tuple(options.overrides))
        for name, check, needs_gpu in checks(setting):
            rows.append(perform(name, check, needs_gpu, setting))
            console.print(f"{rows[-1].outcome}: {name}: {rows[-1].value}")
            write_atomic(options.out, markdown(setting, rows).encode())
    table = Table(title="fsmis gpu-check", title_justify="left")
    for column in ("check", "measured", "bound", "outcome", "seconds"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row.name, row.value, row.bound, row.outcome, f"{row.seconds:.0f}")
    console.print(table)
    console.print(options.out)
    if any(row.outcome == FAILED for row in rows):
        raise SystemExit(SOME_FAILED)


if __name__ == "__main__":
    main()
