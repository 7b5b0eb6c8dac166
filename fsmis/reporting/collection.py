"""All runs below a folder, and the one table of them."""

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fsmis.errors import UserError
from fsmis.reporting.statistics import by_scan, describe
from fsmis.reporting.tables import MEAN, completeness, summarise
from fsmis.runs.records import RunFolder

LABELS = ["dataset", "method", "protocol"]
SUMMARY = ["mean", "low", "high", "sd", "scans", "covered", "variant"]


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A run as it lies on disk, finished or not.

    Attributes:
        folder: its folder.
        plan: ``RunFolder.plan``.
        scores: ``RunFolder.scores``.
    """

    folder: RunFolder
    plan: dict[str, Any]
    scores: pd.DataFrame

    @cached_property
    def states(self) -> list[str]:
        """State of each planned cell."""
        return self.folder.states(self.plan["cells"], self.scores)

    @cached_property
    def covered(self) -> str:
        """How much of the dataset its scores cover (see ``tables.completeness``)."""
        return completeness(self.scores, self.plan, self.states)


def read_runs(folder: Path) -> list[StoredRun]:
    """Every run below a folder.

    Raises:
        UserError: there is none, or one is damaged.
    """
    folders = [RunFolder(path.parent) for path in sorted(folder.rglob("plan.json"))]
    if not folders:
        raise UserError(f"{folder}: no run (plan.json) in it; give a results_dir of fsmis.run")
    return [StoredRun(run, run.plan(), run.scores()) for run in folders]


def tabulate(runs: list[StoredRun]) -> tuple[pd.DataFrame, list[str], list[str]]:
    """One row for each run.

    Returns:
        The table, the names of the settings in which runs differ, and the organs. The index is the
        position in ``runs``. The columns are ``dataset``, ``method``, ``protocol``; those settings;
        Dice in percent of each organ; ``mean`` Dice, the ends ``low`` and ``high`` of its interval
        (see ``statistics.describe``) and its ``sd`` over scans (NaN for a single one); number of
        ``scans`` that are scored; ``covered`` as ``tables.completeness`` says it; ``variant``.
    """
    differing = differences([run.plan for run in runs])
    rows: dict[int, dict[Any, Any]] = {}
    for index, (run, own) in enumerate(zip(runs, differing, strict=True)):
        table = summarise(run.scores, run.plan["organs"]).set_index("organ")
        described = describe(by_scan(run.scores))
        rows[index] = (
            {label: run.plan[label] for label in LABELS}
            | own
            | table["dice"].drop(MEAN).to_dict()
            | table.loc[MEAN, ["dice", "sd", "scans"]].rename({"dice": "mean"}).to_dict()
            | {"low": described.low, "high": described.high}
            | {"covered": run.covered, "variant": run.plan["variant"]}
        )
    settings = list(dict.fromkeys(name for names in differing for name in names))
    organs = list(dict.fromkeys(organ for run in runs for organ in run.plan["organs"]))
    order = sorted(rows, key=lambda i: [_order(rows[i].get(name)) for name in LABELS + settings])
    # settings of any type stay what they are, 8 does not become 8.0 beside a run without it
    columns = LABELS + settings + organs + SUMMARY
    frame = pd.DataFrame([rows[i] for i in order], order, columns, dtype=object)
    numbers = [*organs, "mean", "low", "high", "sd"]
    return frame.astype(dict.fromkeys(numbers, float) | {"scans": int}), settings, organs


def differences(plans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices and settings in which runs differ, for each run.

    A setting counts where runs of the same choice of its group differ in it: two matchers differ in
    name, not in the settings that only one of them has.
    """
    described = []
    values = defaultdict(set)
    for plan in plans:
        choices = {name: str(value) for name, value in plan["choices"].items()}
        settings = plan["identity"]["method"] | {"seed": plan["identity"]["seed"]}
        for name in [name for name in settings if name.split(".")[-1] == "_target_"]:
            del settings[name]
        described.append(choices | settings)
        for name, value in described[-1].items():
            group = None if name in choices else choices.get(name.split(".")[0])
            values[name, plan["method"], group].add(str(value))
    varied = {name for (name, _, _), found in values.items() if len(found) > 1}
    return [{name: value for name, value in run.items() if name in varied} for run in described]


def _order(value: Any) -> tuple[float, str]:
    """Numbers by size, then text by alphabet."""
    return (value, "") if isinstance(value, int | float) else (math.inf, str(value))
