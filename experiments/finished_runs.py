"""Runs that a table needs, and those that are there.

An experiment, ``conf/experiment/<name>.yaml``, says which runs its table needs. Each is looked up
by what identifies it (method, protocol, dataset, seed, weights, scoring code, see
``variant.configured``), so a run counts as finished where ``python -m fsmis.run`` would find it
done, whichever command made it and for whichever table.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from fsmis.errors import UserError
from fsmis.reporting.tables import completeness
from fsmis.runs.jobs import Job, compose_jobs
from fsmis.runs.records import RunFolder
from fsmis.runs.variant import configured


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run that an experiment plans.

    Attributes:
        values: its value of each key that the experiment or the user sweeps, such as
            ``{"matcher": "ssim"}``.
        method: its choice of method.
        fold: of ``protocol.fold``: a number, several, or ``all``.
        identity: see ``variant.configured``.
    """

    values: dict[str, str]
    method: str
    fold: int | list[int] | str
    identity: dict[str, Any]


class Experiment:
    """The runs that ``conf/experiment/<name>.yaml`` plans.

    Args:
        name: of the experiment.
        overrides: settings of all its runs, as ``fsmis.run -m`` takes them: they go before those of
            the experiment, several values of a key are a sweep.

    Attributes:
        runs: in the order of the sweep.
        base: the run without any sweep; where it is one of ``runs``, the others compare with it.
    """

    def __init__(self, name: str, overrides: Sequence[str] = ()) -> None:
        jobs = compose_jobs([f"experiment={name}", *overrides], multirun=True)
        self.runs = [_planned(job) for job in jobs]
        self._shared = jobs[0].shared
        (base,) = compose_jobs(self._shared, multirun=False)
        self.base = _planned(base)

    def command(self, runs: Sequence[PlannedRun], results: Path, *more: str) -> str:
        """The command that makes some of the runs; it leaves what is done as it is."""
        values: dict[str, dict[str, None]] = {}  # of each key, each once, in order
        for run in runs:
            for key, value in run.values.items():
                values.setdefault(key, {})[value] = None
        swept = [f"{key}={','.join(found)}" for key, found in values.items()]
        words = [*self._shared, *more, *swept]
        return shlex.join(["python", "-m", "fsmis.run", "-m", *words, f"results_dir={results}"])


def _planned(job: Job) -> PlannedRun:
    identity = json.loads(json.dumps(configured(job.cfg)))
    return PlannedRun(job.values, job.choices["method"], job.cfg.protocol.fold, identity)


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run folder with its plan and scores; ``partial`` where it does not cover its dataset."""

    folder: RunFolder
    plan: dict[str, Any]
    scores: pd.DataFrame

    @cached_property
    def covered(self) -> str:
        """See ``tables.completeness``."""
        states = self.folder.states(self.plan["cells"], self.scores)
        return completeness(self.scores, self.plan, states)

    @property
    def partial(self) -> bool:
        return self.covered.startswith("partial")

    def has(self, fold: int | list[int] | str) -> bool:
        """Whether all scans that ``protocol.fold`` selects are done."""
        cells = [cell for cell in self.plan["cells"] if _selects(fold, cell.fold)]
        return set(self.folder.states(cells, self.scores)) == {"done"}

    def of(self, fold: int | list[int] | str) -> "FinishedRun":
        """The same run with the scores of the folds alone that ``protocol.fold`` selects."""
        selected = [_selects(fold, number) for number in self.scores["fold"]]
        return replace(self, scores=self.scores[selected])

    @cached_property
    def config(self) -> DictConfig:
        """The resolved configuration that it last ran with.

        Raises:
            UserError: it is not there.
        """
        path = self.folder.path / "config.yaml"
        if not path.is_file():
            raise UserError(f"{path}: missing; run the same command again")
        config = OmegaConf.load(path)
        assert isinstance(config, DictConfig)
        return config


class FinishedRuns:
    """All runs below a results folder.

    Raises:
        UserError: there is no such folder, or a plan in it is damaged.
    """

    def __init__(self, results: Path) -> None:
        if not results.is_dir():
            raise UserError(f"{results}: no such folder; give the results_dir of fsmis.run")
        folders = [RunFolder(path.parent) for path in sorted(results.rglob("plan.json"))]
        self.results = results
        self._runs = [FinishedRun(folder, folder.plan(), folder.scores()) for folder in folders]

    def find(self, planned: PlannedRun) -> FinishedRun | None:
        """The run with scores that was planned: of several, as on other data, the fullest, then
        the latest."""
        found = [
            run.of(planned.fold)
            for run in self._runs
            if run.plan["method"] == planned.method
            and {k: v for k, v in run.plan["identity"].items() if k != "data"} == planned.identity
        ]
        scored = [run for run in found if not run.scores.empty]
        return max(scored, key=_fullest_and_latest, default=None)

    def data_root(self, dataset: str) -> list[str]:
        """``["dataset.root=..."]`` as runs of a dataset have it; empty where there are none."""
        of_dataset = [run for run in self._runs if run.plan["dataset"] == dataset]
        return [f"dataset.root={of_dataset[0].config.dataset.root}"] if of_dataset else []


def _selects(fold: int | list[int] | str, number: int) -> bool:
    return number == fold if isinstance(fold, int) else fold == "all" or number in fold


def _fullest_and_latest(run: FinishedRun) -> tuple[int, float]:
    return len(run.scores), (run.folder.path / "scores.csv").stat().st_mtime
