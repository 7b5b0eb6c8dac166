"""What a command would do, and how long it may take: ``python -m fsmis plan [-m] key=value ...``.

Takes the arguments of fsmis run. Counts the scans of each run, those that are done, the images that
go through the segmenter's encoder (at most), and the trainings to do; writes nothing. Times are
those that finished scans of the same run, and trainings of the same settings, took, wherever they
ran; --measure segments a scan of each run that has none, and trains nothing.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fsmis.cli import command_line, console, errors
from fsmis.errors import ScanError
from fsmis.files import author
from fsmis.methods import TrainingScans
from fsmis.methods.trained.fold import TIMING, FoldTraining
from fsmis.methods.trained.network import EpisodicNetwork
from fsmis.methods.trained.training import EpisodicTraining
from fsmis.reporting.display import Served, encoder_images, looked_at
from fsmis.run import Run
from fsmis.runs.records import Cell, read_json
from fsmis.runs.sweep import Job, at_home, compose_jobs, own_options
from fsmis.settings import limit_threads

# Of the default settings on one CPU core, where 150 to 200 steps take 3 to 4 minutes.
DEFAULT_STEP_S = 1.0


@dataclass(frozen=True)
class PlannedFold:
    """An unfinished training of a fold.

    Attributes:
        steps: of the optimiser, still to do.
        timed: seconds per step of each finished training with these settings, including the
            reading of the scans, on ``hosts``; empty where there is none.
    """

    steps: int
    timed: tuple[float, ...]
    hosts: frozenset[str]

    @property
    def seconds(self) -> float:
        """Expected time; without timings, that of the default settings on one CPU core."""
        return self.steps * (median(self.timed) if self.timed else DEFAULT_STEP_S)


class PlannedTraining(EpisodicTraining):
    """Stands in for the training of a method: notes in ``folds`` the unfinished ones, by the folder
    that keeps them, and trains nothing."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.folds: dict[Path, PlannedFold] = {}

    def train(
        self, network: EpisodicNetwork, scans: TrainingScans, name: str, settings: dict[str, Any]
    ) -> pd.DataFrame:
        fold = FoldTraining(network, self.schedule, self.folder_of(network, scans, name, settings))
        if not fold.load():
            pace = self.pace(settings)
            records = map(read_json, fold.folder.parents[1].glob(f"*/fold_*/{TIMING}"))
            like = [record for record in records if record and record.get("pace") == pace]
            self.folds[fold.folder] = PlannedFold(
                self.schedule.steps - fold.step,
                tuple(record["seconds"] / record["steps"] for record in like),
                frozenset(record["host"] for record in like),
            )
        network.eval().requires_grad_(False)
        return pd.DataFrame(fold.log)


@dataclass(frozen=True)
class Plan:
    """What one run is going to do.

    Attributes:
        name: distinguishes it from the other runs of a sweep.
        requested: scans selected, each in its fold.
        pending: scans to compute, without those that an earlier run of the sweep computes.
        images: of the pending scans, for the segmenter's encoder, at most.
        trainings: those that the pending scans need, again without those of earlier runs.
        seconds: wall time of each scan of this run that was timed, on ``hosts``.
    """

    name: str
    requested: int
    pending: int
    images: int
    trainings: Sequence[PlannedFold]
    seconds: Sequence[float]
    hosts: frozenset[str]

    @property
    def expected(self) -> float | None:
        """Seconds that one process needs; None where no scan was timed."""
        if not self.pending:
            return 0.0
        if not self.seconds:
            return None
        return self.pending * median(self.seconds) + sum(fold.seconds for fold in self.trainings)


class Planner:
    """Plan the runs of a sweep, one after another.

    ``measure`` segments, without recording it, a scan of each run of which none was timed.
    """

    def __init__(self, measure: bool) -> None:
        self._measure = measure
        self._planned: set[tuple[str, Cell]] = set()
        self._trained: set[Path] = set()  # folders of trainings
        # by organ the query slices that each support slice serves, by what decides it
        self._served: dict[tuple[str, Cell], tuple[Mapping[str, Served], int, int]] = {}

    def plan(self, job: Job) -> Plan:
        """What a run is going to do after those before it; UserError for bad settings or data."""
        run = Run(job.cfg, job.choices)
        if _target(run.cfg.method) == _dotted(EpisodicTraining):
            self._stand_in(run.cfg.method.training)  # from here on, its identity being known
        folder = run.folder
        pending = [cell for cell in run.pending() if (str(folder.path), cell) not in self._planned]
        self._planned |= {(str(folder.path), cell) for cell in pending}
        trainings = self._trainings(run, pending)
        timed = [r for r in map(folder.read, folder.done(run.every)) if "wall_seconds" in r]
        seconds, hosts = [r["wall_seconds"] for r in timed], {r["host"] for r in timed}
        if self._measure and pending and not seconds:
            seconds, hosts = [_measured(run, pending[0])], {author()["host"]}
        images = sum(self._images(run, cell) for cell in pending)
        counts = len(run.requested), len(pending), images
        return Plan(job.name, *counts, trainings, seconds, frozenset(hosts))

    def _stand_in(self, training: DictConfig) -> None:
        training._target_ = _dotted(PlannedTraining)
        if not self._measure:  # where plans are made, there may be no other device
            training.device = "cpu"

    def _trainings(self, run: Run, pending: Sequence[Cell]) -> list[PlannedFold]:
        if _target(run.cfg.method) != _dotted(PlannedTraining):
            return []
        training = getattr(run.evaluation.build(), "training", None)
        if not isinstance(training, PlannedTraining):  # of a method of one's own, kept elsewhere
            return []
        for fold in sorted({cell.fold for cell in pending}):
            run.evaluation.fit(fold)
        folds = training.folds
        unplanned = [fold for path, fold in folds.items() if path not in self._trained]
        self._trained |= folds.keys()
        return unplanned

    def _images(self, run: Run, cell: Cell) -> int:
        if "segmenter" not in run.cfg.method:
            return 0
        parts = (OmegaConf.to_yaml(run.cfg[part], resolve=True) for part in ("dataset", "protocol"))
        key = "".join(parts), cell
        if key not in self._served:
            try:
                _, episode = run.evaluation.episode(cell)
                self._served[key] = looked_at(episode, run.protocol.untold)
            except ScanError as error:
                errors.print(f"scan {cell.query_scan} of fold {cell.fold} will fail: {error}")
                self._served[key] = {}, 0, 0
        return encoder_images(run.cfg.method, *self._served[key])


def _target(method: DictConfig) -> str | None:
    """Class of a method's training, which may be anything in a method of one's own."""
    target: str | None = OmegaConf.select(method, "training._target_")
    return target


def _dotted(training: type) -> str:
    return f"{training.__module__}.{training.__qualname__}"


def _measured(run: Run, cell: Cell) -> float:
    limit_threads(run.cfg.threads)
    run.evaluation.fit(cell.fold)
    start = time.perf_counter()
    run.evaluation.segment(cell).rows()
    return time.perf_counter() - start


def show(plans: list[Plan]) -> None:
    """Print a row for each run, and the basis of the times."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    for column in ("scans", "done", "to do", "encoder images", "trainings", "time"):
        table.add_column(column, justify="right")
    counts = [
        (p.requested, p.requested - p.pending, p.pending, p.images, len(p.trainings)) for p in plans
    ]
    for plan, row in zip(plans, counts, strict=True):
        table.add_row(plan.name or "this run", *map(str, row), duration(plan.expected))
    known = [plan.expected for plan in plans if plan.expected is not None]
    if len(plans) > 1:
        table.add_section()
        totals = map(sum, zip(*counts, strict=True))
        total = duration(sum(known) if len(known) == len(plans) else None)
        table.add_row(f"all {len(plans)} runs", *map(str, totals), total)
    console.print(table)
    timed = [plan for plan in plans if plan.pending and plan.seconds]
    if timed:
        count = sum(len(plan.seconds) for plan in timed)
        hosts = ", ".join(sorted(frozenset().union(*(plan.hosts for plan in timed))))
        console.print(
            f"time: scans to do x median of {count} scans timed on {hosts}, one process at a time, "
            "without loading weights"
        )
    show_trainings([fold for plan in plans for fold in plan.trainings])
    if len(known) < len(plans):
        console.print(
            f"time of {len(plans) - len(known)} of {len(plans)} runs unknown: none of their scans "
            "has been timed; --measure segments one of each"
        )


def show_trainings(folds: list[PlannedFold]) -> None:
    """Print how long trainings take in total, and the basis of that."""
    timed, others = [f for f in folds if f.timed], [f for f in folds if not f.timed]
    hosts = ", ".join(sorted(frozenset().union(*(fold.hosts for fold in timed))))
    like = f"median of finished trainings of the same settings, timed on {hosts}"
    default = f"{DEFAULT_STEP_S:g} s, as of the default settings on one CPU core (none was timed)"
    for some, basis in ((timed, like), (others, default)):
        if some:
            steps, seconds = sum(fold.steps for fold in some), sum(fold.seconds for fold in some)
            console.print(f"training: {duration(seconds)}, {steps} steps x {basis}")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m fsmis plan",
        description=__doc__.split("\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for fsmis run")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="a sweep over lists of values"
    )
    parser.add_argument("--config-dir", type=Path, help="options of your own, as for fsmis run")
    parser.add_argument("--measure", action="store_true", help="time a scan where none has been")
    options = parser.parse_intermixed_args()
    overrides = own_options(options.config_dir) + [at_home(word) for word in options.overrides]
    with command_line():
        planner = Planner(options.measure)
        show([planner.plan(job) for job in compose_jobs(overrides, options.multirun)])


if __name__ == "__main__":
    main()
