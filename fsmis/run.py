"""Run a method over the scans of a dataset: ``python -m fsmis run [-m] key=value ...``.

Every query scan is recorded when it is done, so the same command resumes a run that was stopped.
Exit code 0: all requested scans are scored; 1: some failed; 2: bad input or settings.
"""

import os
import sys
import time
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fsmis.cli import (
    CONF_DIR,
    SOME_FAILED,
    USER_ERROR,
    Interrupted,
    command_line,
    interruptible,
    print_help_and_exit,
)
from fsmis.data.dataset import Dataset
from fsmis.data.protocol import Protocol
from fsmis.data.verify import notes_on, verify_once
from fsmis.errors import ScanError, UserError
from fsmis.files import author, beating, now, require_name
from fsmis.reporting import display, figures, tracking
from fsmis.reporting.tables import write_summary
from fsmis.runs.evaluation import Evaluation, Segmented
from fsmis.runs.records import Cell, RunFolder, require_writable
from fsmis.runs.sweep import at_home, killed_jobs, share
from fsmis.runs.variant import identity, news, provenance, variant_hash, weights_of
from fsmis.settings import (
    RunSettings,
    converted,
    limit_threads,
    named,
    require_at_least,
    require_known,
    require_replacing,
    with_selected_organs,
)
from fsmis.source import code_version


class Run:
    """One configuration on its way from the data to its table.

    Attributes:
        cfg: the configuration, its settings brought to their types.
        every: the cells of all folds.
        requested: those of the folds and the share that are asked for.
        folder: where they are recorded.
        kept: cells that were done before and failed this time; what they had stands.
    """

    def __init__(self, cfg: DictConfig, choices: dict[str, str]) -> None:
        """Check settings and data; nothing is written yet.

        Args:
            cfg: the composed configuration.
            choices: name of the choice in each group, e.g. ``{"method": "copy_mask"}``.

        Raises:
            UserError: bad settings or data, or ``results_dir`` cannot be written.
        """
        cfg = converted(cfg, RunSettings)
        require_known(cfg, RunSettings, choices)
        require_writable(cfg.results_dir)
        require_at_least(0, worst_figures=cfg.worst_figures)
        require_at_least(1, figure_slices=cfg.figure_slices)
        if cfg.figures not in figures.CHOICES:
            raise UserError(f"figures={cfg.figures}: choose one of {', '.join(figures.CHOICES)}")
        tracking.check(cfg.wandb)
        cfg = with_selected_organs(cfg)
        self.cfg = cfg
        self.dataset: Dataset = instantiate(cfg.dataset)
        self.protocol: Protocol = instantiate(cfg.protocol)
        self.every = self._cells(instantiate(cfg.protocol, fold="all"))
        self.evaluation = Evaluation(cfg.method, self.dataset, self.protocol)
        identified = identity(cfg, self.dataset)
        variant = variant_hash(identified)
        self.requested = share(self._cells(self.protocol), self.every, cfg.shard, variant)
        method = named(cfg, choices)
        self.labels = {
            "dataset": self.dataset.name,
            "method": method,
            "variant": variant,
            "protocol": self.protocol.name,
        }
        for part in method.split("/"):  # a choice may lie in a folder of its group
            require_name("method", part)
        parent = Path(cfg.results_dir).expanduser() / self.dataset.name / method
        self.folder = RunFolder(parent / variant)
        self.kept: list[Cell] = []
        self._code = code_version()
        self.news = news(parent, variant, identified)
        self._plan = {
            **self.labels,
            "oracle": self.protocol.oracle,
            "organs": list(self.dataset.organs),
            "choices": {group: name for group, name in choices.items() if group in cfg.method},
            "identity": identified,
            "cells": self.every,
        }

    def pending(self) -> list[Cell]:
        """Requested cells to compute: those not done, or without a file that is asked for."""
        return [cell for cell in self.requested if self.cfg.force or not self._is_complete(cell)]

    def start(self, compute: bool) -> None:
        """Write the plan; before that, data and weights to compute with are checked.

        Raises:
            UserError: scans are not what was expected, or weights are missing or damaged.
        """
        if compute:
            verify_once(self.dataset)
            self.evaluation.build()
        self.folder.write_plan(self._plan)
        self.folder.write("config.yaml", OmegaConf.to_yaml(self.cfg, resolve=True))
        if compute:
            weights, data = weights_of(self.cfg.method), self.dataset.fingerprint()
            self._provenance = provenance(self.cfg.seed, weights, data)
            self.folder.write_json("provenance.json", self._provenance)

    def end(self) -> None:
        """Note the time of the end."""
        self.folder.write_json("provenance.json", {**self._provenance, "end": now()})

    def compute(self, cell: Cell) -> None:
        """Segment, score and record one cell; what fails is recorded with its reason.

        Raises:
            UserError: something other than a scan, to be mended first.
        """
        if not self.cfg.force and self._is_complete(cell):  # by another process since
            return
        # what an earlier computation left must not pass for this one's
        record = self.folder.begin(cell, now())
        self._figure(cell).unlink(missing_ok=True)
        try:
            with beating(record):
                log = self.evaluation.fit(cell.fold)
                if log is not None:
                    figures.write_training(self.folder.path / "training", cell.fold, log)
                start = time.perf_counter()  # a training is timed in its own folder
                segmented = self.evaluation.segment(cell)
                for note in notes_on(f"scan {cell.query_scan}", segmented.query.image):
                    display.errors.print(f"note: {note}")
                if self.cfg.save_predictions:
                    segmented.write(self._prediction(cell), self.dataset.organs)
                if self.cfg.figures == "all":
                    self._draw(cell, segmented)
                rows = [{**self.labels, **row} for row in segmented.rows()]
            wall = {"wall_seconds": time.perf_counter() - start, **author()}
            skipped = segmented.episode.skipped
            self.folder.finish(cell, rows, skipped=skipped, code=self._code, **wall)
        except ScanError as error:
            self._fail(cell, str(error))
        except UserError:  # settings, or a results folder that is full: every scan would fail
            self.folder.forget(cell)
            raise
        except Exception as error:  # such as a GPU out of memory: the other scans go on
            self._fail(cell, f"{type(error).__name__}: {error}")
            if "torch" in sys.modules:
                sys.modules["torch"].cuda.empty_cache()

    def draw_selected(self) -> list[Path]:
        """Figures asked for; the worst are known only now, and segmented again to be drawn."""
        scores = self.folder.scores()
        selected = figures.select(scores, self.requested, self.cfg.figures, self.cfg.worst_figures)
        for cell in selected:
            if not self._figure(cell).is_file():
                self._draw(cell, self.evaluation.segment(cell))
        return [self._figure(cell) for cell in selected]

    def _fail(self, cell: Cell, reason: str) -> None:
        if self.folder.read(cell)["state"] == "done":
            self.kept.append(cell)
            display.errors.print(
                f"scan {cell.query_scan} of fold {cell.fold} failed: {reason}; its earlier scores "
                "are kept"
            )
        self.folder.fail(cell, "failed", reason)

    def _is_complete(self, cell: Cell) -> bool:
        record = self.folder.read(cell)
        if record["state"] != "done":
            return False
        drawn = self.cfg.figures != "all" or not record["rows"] or self._figure(cell).is_file()
        return drawn and (not self.cfg.save_predictions or self._prediction(cell).is_file())

    def _draw(self, cell: Cell, segmented: Segmented) -> None:
        title = f"{self.labels['dataset']}, {self.labels['method']}, {self.labels['protocol']}"
        figures.draw(self._figure(cell), segmented, self.cfg.figure_slices, title)

    def _figure(self, cell: Cell) -> Path:
        return self.folder.path / f"figures/{cell.name}.png"

    def _prediction(self, cell: Cell) -> Path:
        return self.folder.path / f"predictions/{cell.name}.nii.gz"

    def _cells(self, protocol: Protocol) -> list[Cell]:
        return [
            Cell(split.fold, split.support_id, query)
            for split in protocol.splits(self.dataset)
            for query in split.query_ids
        ]


def execute(cfg: DictConfig, choices: dict[str, str]) -> int:
    """Do a whole run and print its table; returns the exit code."""
    cell: Cell | None = None
    run = Run(cfg, choices)
    limit_threads(run.cfg.threads)
    for line in run.news:
        display.console.print(line)
    for line in run.folder.set_aside(run.requested):
        display.errors.print(line)
    pending, organs = run.pending(), list(run.dataset.organs)
    try:
        with interruptible():
            run.start(compute=bool(pending))
            with display.progress(run.folder, run.requested, pending, organs) as advance:
                for cell in pending:
                    run.compute(cell)
                    advance(cell, run.folder.rebuild())
            cell = None
            run.folder.rebuild()
            drawn = run.draw_selected()
    except Interrupted as signal:
        if cell is not None:
            run.folder.fail(cell, "interrupted", str(signal))
            run.folder.rebuild()
        done = f"{len(run.folder.done(run.requested))}/{len(run.requested)} scans are done and kept"
        again = f"the same command {'begins anew (force=true)' if run.cfg.force else 'resumes'}"
        display.errors.print(f"interrupted by {signal}: {done}, {again}")
        raise SystemExit(signal.exit_code) from None
    if pending:
        run.end()
    title, table, notes, written = write_summary(run.folder)
    display.table(title, table, notes)
    for path in [run.folder.path / "scores.csv", *written, *drawn]:
        display.console.print(path)
    failed = len(run.requested) - len(run.folder.done(run.requested)) + len(run.kept)
    if failed:
        display.errors.print(f"{failed} of {len(run.requested)} scans failed, see above")
    untracked = tracking.track(run.folder, run.cfg.wandb)
    if untracked:
        display.errors.print(untracked)
    return SOME_FAILED if failed else 0


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def main(cfg: DictConfig) -> str | None:
    """Run once, as one job of a sweep too: there, a job that fails leaves the others running.

    Returns:
        Why a job of a sweep failed, for ``SweepSummary``; None where it did not.
    """
    job = HydraConfig.get()
    alone = job.mode is not RunMode.MULTIRUN
    try:
        with command_line():
            require_replacing(job.overrides.task, cfg)
            code = execute(cfg, dict(job.runtime.choices))
        if code:
            raise SystemExit(code)
    except SystemExit as stop:
        if alone or stop.code not in (SOME_FAILED, USER_ERROR):
            raise
        return str(stop.__cause__ or "some scans failed")
    except Exception as error:
        if alone:
            raise
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def command() -> None:
    """The command line: ``main``, and one line for what Hydra itself refuses."""
    print_help_and_exit(sys.argv[1:], "python -m fsmis run", "config")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises its errors and does not print
    sys.argv[1:] = map(at_home, sys.argv[1:])
    with command_line(), killed_jobs():
        main()


if __name__ == "__main__":
    command()
