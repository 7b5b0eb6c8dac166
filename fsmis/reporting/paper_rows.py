"""The rows of a paper's table: runs that it needs, those that exist, their Dice and differences.

``conf/experiment/<name>.yaml`` says which runs a table needs. Each is looked up by what identifies
it (see ``variant.configured``), so a run counts as finished where ``python -m fsmis run`` would
find it done, whichever command made it and for whichever table. A partial run, which does not cover
its dataset, is shown and never compared.
"""

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fsmis.reporting.runs import Fold, StoredRun
from fsmis.reporting.statistics import METHOD, Difference, describe, holm
from fsmis.reporting.tables import MEAN, PAIRED, POOLED, POOLED_NOTE, summarise
from fsmis.runs.sweep import Job, compose_jobs, quoted
from fsmis.runs.variant import configured
from fsmis.settings import named

# The columns of ``Rows.frame`` that are no names and no organs.
COLUMNS = (
    *("protocol", MEAN, POOLED, "sd", "median", "low", "high", "patients", "difference", "p"),
    *("covered", "variant"),
)


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run that an experiment plans.

    Attributes:
        values: value of each key that the experiment or the user sweeps, such as
            ``{"matcher": "ssim"}``.
        method: its choice in ``conf/method``.
        fold: ``protocol.fold``: a number, several, or ``all``.
        identity: see ``variant.configured``.
    """

    values: dict[str, str]
    method: str
    fold: Fold
    identity: dict[str, Any]

    def same(self, other: "PlannedRun") -> bool:
        """Whether both are one run, whatever was swept to get there."""
        own, its = ((run.method, run.fold, run.identity) for run in (self, other))
        return own == its


class Experiment:
    """The runs that ``conf/experiment/<name>.yaml`` plans.

    ``overrides`` are settings of all its runs, as ``fsmis run -m`` takes them: they go before those
    of the experiment, and several values of a key are a sweep.

    Attributes:
        runs: in the order of the sweep.
        base: the run without any sweep; if it is one of ``runs``, the others are compared with it.
    """

    def __init__(self, name: str, overrides: Sequence[str] = ()) -> None:
        jobs = compose_jobs([f"experiment={name}", *overrides], multirun=True)
        self.runs = [_planned(job) for job in jobs]
        self._shared = jobs[0].shared
        (base,) = compose_jobs(self._shared, multirun=False)
        self.base = _planned(base)

    def command(self, runs: Sequence[PlannedRun], results: Path, *more: str) -> str:
        """The command that makes some of the runs, without repeating what is done."""
        values: dict[str, dict[str, None]] = {}  # of each key, each once, in order
        for run in runs:
            for key, value in run.values.items():
                values.setdefault(key, {})[value] = None
        swept = [f"{key}={','.join(found)}" for key, found in values.items()]
        words = [*self._shared, *more, *swept]
        words.append(f"results_dir={quoted(str(results))}")
        return shlex.join(["python", "-m", "fsmis", "run", "-m", *words])


def _planned(job: Job) -> PlannedRun:
    identity = json.loads(json.dumps(configured(job.cfg)))
    return PlannedRun(job.values, named(job.cfg, job.choices), job.cfg.protocol.fold, identity)


@dataclass(frozen=True, eq=False)
class FinishedRuns:
    """Runs that are there.

    Attributes:
        results: a folder of them, where missing ones are to be made.
        runs: in the order in which they were read.
    """

    results: Path
    runs: Sequence[StoredRun]

    def find(self, planned: PlannedRun, any_code: bool = False) -> StoredRun | None:
        """The planned run, if it has scores, and with ``any_code`` even of code that has changed
        since; of several, as on other data, ``best``."""
        ignored = {"data", "code"} if any_code else {"data"}
        wanted = _without(planned.identity, ignored)
        return best(
            run.of(planned.fold)
            for run in self.runs
            if run.method == planned.method and _without(run.plan["identity"], ignored) == wanted
        )

    def data_root(self, dataset: str) -> list[str]:
        """``["dataset.root=..."]`` as runs of a dataset have it; empty where there are none."""
        of_dataset = [run for run in self.runs if run.plan["dataset"] == dataset]
        return [f"dataset.root={quoted(of_dataset[0].config.dataset.root)}"] if of_dataset else []


def best(runs: Iterable[StoredRun]) -> StoredRun | None:
    """The fullest run with scores, and of those the latest."""
    return max((run for run in runs if len(run.scores)), key=_fullest_and_latest, default=None)


def _without(identity: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in keys}


def _fullest_and_latest(run: StoredRun) -> tuple[int, float]:
    return len(run.scores), (run.folder.path / "scores.csv").stat().st_mtime


NOTE = (
    "Dice in percent, over scans, then folds; mean over organs. sd over patients. "
    f"{METHOD}. {POOLED_NOTE}"
)
PARTIAL_NOTE = "Partial runs do not cover their dataset: not to be compared with the others."
EARLIER = "earlier code"
EARLIER_NOTE = f"{EARLIER.capitalize()}: the same settings and weights, the code has changed since."
DATA_NOTE = "The runs read different data files: not to be compared."
TEST_NOTE = (
    f"{PAIRED}: mean difference to {{reference}} over the scans that both have scored; p: "
    "Wilcoxon's signed-rank test over the same patients, Holm's correction; within a protocol."
)


@dataclass(frozen=True, eq=False)
class Row:
    """A run in a table.

    Attributes:
        names: what tells it from the others, by column of the table.
        run: its plan and scores.
        current: of the code that is here.
    """

    names: dict[str, str]
    run: StoredRun
    current: bool = True

    @cached_property
    def dice(self) -> pd.Series:
        """Percent, by organ, then their mean."""
        return summarise(self.run.scores, self.run.plan["organs"]).set_index("organ")["dice"]

    @cached_property
    def pooled(self) -> float:
        """Percent, the mean over organs of ``tables.pooled``."""
        table = summarise(self.run.scores, self.run.plan["organs"])
        return float(table[POOLED].iloc[-1])

    @property
    def covered(self) -> str:
        """How much of its dataset it covers, and whether the code has changed since."""
        return self.run.covered + ("" if self.current else f", {EARLIER}")

    @property
    def label(self) -> str:
        """Its names in one line, and whether it is partial."""
        partial = " (partial)" if self.run.partial else ""
        return ", ".join(value for value in self.names.values() if value) + partial


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a table in their order.

    Attributes:
        rows: of runs with scores.
        reference: the one that others are tested against; None where it is not there or partial.
    """

    rows: list[Row]
    reference: Row | None

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row for each run.

        Columns: names; ``protocol``; organs and ``mean``, Dice in percent; ``pooled Dice``;
        ``sd``, ``median``, ``low`` and ``high`` as in ``statistics.Description``; ``patients``;
        ``difference`` to the reference in percent points (see ``statistics.Difference``) and its
        ``p``; ``covered`` as ``tables.completeness`` has it; ``variant``.
        """
        differences, p_values = self._tested()
        frame = []
        for row, difference, p in zip(self.rows, differences, p_values, strict=True):
            spread = describe(row.run.dice)
            frame.append(
                row.names
                | {"protocol": row.run.plan["protocol"]}
                | row.dice.to_dict()
                | {POOLED: row.pooled}
                | {"sd": spread.sd, "median": spread.median, "low": spread.low, "high": spread.high}
                | {"patients": spread.n, "difference": difference, "p": p}
                | {"covered": row.covered, "variant": row.run.variant}
            )
        return pd.DataFrame(frame)

    def notes(self) -> list[str]:
        """How the table is to be read."""
        notes = [NOTE]
        if any(row.run.partial for row in self.rows):
            notes.append(PARTIAL_NOTE)
        if not all(row.current for row in self.rows):
            notes.append(EARLIER_NOTE)
        if self.reference is not None and len(self.rows) > 1:
            notes.append(TEST_NOTE.format(reference=self.reference.label))
        if len(set(map(_data, self.rows))) > 1:
            notes.append(DATA_NOTE)
        oracles = {row.run.plan["oracle"]: row.run.plan["protocol"] for row in self.rows}
        for oracle, protocol in oracles.items():
            of = f" ({protocol})" if len(oracles) > 1 else ""
            notes.append(f"Known of the query's true extent{of}: {oracle}.")
        return notes

    def _tested(self) -> tuple[np.ndarray, np.ndarray]:
        """Difference of each run to the reference, and p; NaN where nothing is compared."""
        difference, p = np.full((2, len(self.rows)), np.nan)
        for number, row in enumerate(self.rows):
            if self._comparable(row):
                assert self.reference is not None
                found = Difference.of(self.reference.run.dice, row.run.dice)
                difference[number], p[number] = found.mean, found.p
        return difference, holm(p)

    def _comparable(self, row: Row) -> bool:
        if self.reference is None or row is self.reference or row.run.partial:
            return False
        # of other slices or support scans, a difference is the protocol's, not a method's to test
        same_protocol = row.run.plan["protocol"] == self.reference.run.plan["protocol"]
        return same_protocol and _data(row) == _data(self.reference)


def _data(row: Row) -> str:
    """Fingerprint of the files that it read."""
    return row.run.plan["identity"]["data"]
