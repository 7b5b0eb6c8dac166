"""Runs that a table needs, and those that are there.

An experiment, ``conf/experiment/<name>.yaml``, says which runs its table needs. Each is looked up
by what identifies it (method, protocol, dataset, seed, weights, scoring code, see
``variant.configured``), so a run counts as finished where ``python -m fsmis.run`` would find it
done, whichever command made it and for whichever table.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsmis.errors import UserError
from fsmis.reporting.runs import Fold, StoredRun, stored_runs
from fsmis.runs.jobs import Job, compose_jobs
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
    fold: Fold
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


class FinishedRuns:
    """All runs below a results folder, looked up by what was planned.

    Raises:
        UserError: there is no such folder, or a plan in it is damaged.
    """

    def __init__(self, results: Path) -> None:
        if not results.is_dir():
            raise UserError(f"{results}: no such folder; give the results_dir of fsmis.run")
        self.results = results
        self._runs = stored_runs(results)

    def find(self, planned: PlannedRun) -> StoredRun | None:
        """The run with scores that was planned: of several, as on other data, the fullest, then
        the latest."""
        found = [
            run.of(planned.fold)
            for run in self._runs
            if run.method == planned.method
            and {k: v for k, v in run.plan["identity"].items() if k != "data"} == planned.identity
        ]
        scored = [run for run in found if not run.scores.empty]
        return max(scored, key=_fullest_and_latest, default=None)

    def data_root(self, dataset: str) -> list[str]:
        """``["dataset.root=..."]`` as runs of a dataset have it; empty where there are none."""
        of_dataset = [run for run in self._runs if run.plan["dataset"] == dataset]
        return [f"dataset.root={of_dataset[0].config.dataset.root}"] if of_dataset else []


def _fullest_and_latest(run: StoredRun) -> tuple[int, float]:
    return len(run.scores), (run.folder.path / "scores.csv").stat().st_mtime
