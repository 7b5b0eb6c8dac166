"""Runs as stored on disk, finished or not; one table of them, and what each is called in it."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from fsmis.errors import UserError
from fsmis.reporting.statistics import by_scan, describe
from fsmis.reporting.tables import MEAN, POOLED, completeness, is_partial, summarise
from fsmis.runs.records import Cell, RunFolder

Fold = int | list[int] | str  # ``protocol.fold``: a number, several, or ``all``


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A run: its folder, what it planned and what it has scored, as ``RunFolder`` reads them."""

    folder: RunFolder
    plan: dict[str, Any]
    scores: pd.DataFrame

    @property
    def method(self) -> str:
        return self.plan["method"]

    @property
    def variant(self) -> str:
        return self.plan["variant"]

    @cached_property
    def states(self) -> list[str]:
        return self.folder.states(self.plan["cells"], self.scores)

    @cached_property
    def covered(self) -> str:
        """How much of the dataset its scores cover (see ``tables.completeness``)."""
        return completeness(self.scores, self.plan, self.states)

    @property
    def partial(self) -> bool:
        return is_partial(self.covered)

    @cached_property
    def dice(self) -> pd.DataFrame:
        return by_scan(self.scores)

    @cached_property
    def config(self) -> DictConfig:
        """The resolved configuration of its last start; UserError where it is missing."""
        path = self.folder.path / "config.yaml"
        if not path.is_file():
            raise UserError(f"{path}: missing; run the same command again")
        config = OmegaConf.load(path)
        assert isinstance(config, DictConfig)
        return config

    def has(self, fold: Fold) -> bool:
        """Whether all scans that ``protocol.fold`` selects are done."""
        return set(self.folder.states(self.cells(fold), self.scores)) == {"done"}

    def cells(self, fold: Fold) -> list[Cell]:
        """The planned scans of the folds that ``protocol.fold`` selects."""
        return [cell for cell in self.plan["cells"] if _selects(fold, cell.fold)]

    def of(self, fold: Fold) -> "StoredRun":
        """The same run with only the scores of the folds that ``protocol.fold`` selects."""
        selected = [_selects(fold, number) for number in self.scores["fold"]]
        return replace(self, scores=self.scores[selected])


def read_runs(folder: Path | str) -> list[StoredRun]:
    """Every run below a folder, sorted by path.

        from fsmis import read_runs
        for run in read_runs("results/runs"):
            print(run.method, run.covered, run.scores["dice"].mean())  # a row a scan and organ

    Raises UserError where the folder does not exist, holds no run, or a run is damaged.
    """
    runs = stored_runs(Path(folder))
    if not runs:
        found = "no run (plan.json) in it" if Path(folder).is_dir() else "no such folder"
        raise UserError(f"{folder}: {found}; give a results_dir of fsmis run")
    return runs


def stored_runs(folder: Path) -> list[StoredRun]:
    """``read_runs`` of a folder that may hold none yet."""
    folders = RunFolder.below(folder)
    return [StoredRun(run, run.plan(), run.scores()) for run in folders]


def _selects(fold: Fold, number: int) -> bool:
    return number == fold if isinstance(fold, int) else fold == "all" or number in fold


LABELS = ["dataset", "method", "protocol"]
SUMMARY = ["mean", "low", "high", "sd", POOLED, "scans", "covered", "variant"]
IDENTITY = "identity"  # begins the columns that tell runs of one name apart
DIGEST = re.compile(r"[0-9a-f]{12,}")  # of files or code, of which the start is enough


def tabulate(runs: list[StoredRun]) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The table with one row for each run, the settings in which runs differ, and the organs.

    Index: position in ``runs``. Columns: ``dataset``, ``method``, ``protocol``; those settings;
    Dice in percent of each organ; ``mean`` Dice, the ends ``low`` and ``high`` of its interval (see
    ``statistics.describe``), its ``sd`` over scans (NaN for a single one); mean of ``pooled Dice``
    (see ``tables.pooled``); number of scored ``scans``; ``covered`` (see ``tables.completeness``);
    ``variant``.
    """
    organs = organs_of(runs)
    taken = {*LABELS, *SUMMARY, *organs}  # which a method's own setting may be called
    differing = [
        {f"method.{n}" if n in taken else n: _plain(value) for n, value in settings.items()}
        for settings in told_apart(runs)
    ]
    rows: dict[int, dict[Any, Any]] = {}
    for index, (run, own) in enumerate(zip(runs, differing, strict=True)):
        table = summarise(run.scores, run.plan["organs"]).set_index("organ")
        described = describe(run.dice)
        rows[index] = (
            {label: run.plan[label] for label in LABELS}
            | own
            | table["dice"].drop(MEAN).to_dict()
            | table.loc[MEAN, ["dice", "sd", POOLED, "scans"]].rename({"dice": "mean"}).to_dict()
            | {"low": described.low, "high": described.high}
            | {"covered": run.covered, "variant": run.plan["variant"]}
        )
    settings = list(dict.fromkeys(name for names in differing for name in names))
    order = sorted(rows, key=lambda i: [_order(rows[i].get(name)) for name in LABELS + settings])
    # settings of any type stay what they are, 8 does not become 8.0 beside a run without it
    columns = LABELS + settings + organs + SUMMARY
    frame = pd.DataFrame([rows[i] for i in order], order, columns, dtype=object)
    numbers = [*organs, "mean", "low", "high", "sd", POOLED]
    return frame.astype(dict.fromkeys(numbers, float) | {"scans": int}), settings, organs


def best_first(frame: pd.DataFrame, runs: Sequence[StoredRun]) -> pd.Index:
    """The rows of ``tabulate`` with a mean: complete runs first, of these those of the most organs,
    of these the highest mean."""
    scored = frame.dropna(subset=["mean"])
    keys = ["whole", "organs", "mean"]
    whole = [not runs[i].partial for i in scored.index]
    organs = [len(runs[i].plan["organs"]) for i in scored.index]
    ranked = pd.DataFrame(dict(zip(keys, (whole, organs, scored["mean"]), strict=True)))
    return ranked.sort_values(keys, ascending=False, kind="stable").index


def organs_of(runs: Iterable[StoredRun]) -> list[str]:
    """The organs of several runs, each once."""
    return list(dict.fromkeys(organ for run in runs for organ in run.plan["organs"]))


def differences(plans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices and settings in which runs differ, for each run.

    A setting counts where runs with the same choice of its group differ in it: two matchers differ
    in name, not in the settings that only one of them has.
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


def told_apart(runs: list[StoredRun]) -> list[dict[str, Any]]:
    """``differences``, and what else distinguishes runs that would still share their name.

    These are parts of the identity that make a variant without being a setting of the method, such
    as ``identity.data``, with shortened digests; for copies of one run, the folder.
    """
    found = differences([run.plan for run in runs])
    for twins in _sharing(runs, found):
        identities = [_flat(runs[i].plan["identity"], IDENTITY) for i in twins]
        names = dict.fromkeys(name for identity in identities for name in identity)
        for name in names:
            values = [identity.get(name, math.nan) for identity in identities]
            if len(set(map(str, values))) > 1:
                for i, value in zip(twins, values, strict=True):
                    found[i] = found[i] | {name: _short(value)}
    for twins in _sharing(runs, found):
        for i in twins:
            found[i] = found[i] | {"run.folder": str(runs[i].folder.path)}
    return found


def labels(frame: pd.DataFrame, settings: list[str]) -> list[str]:
    """Name of every run: what is not the same for all, and whether it is partial."""
    constant = [name for name in LABELS if frame[name].nunique() == 1]
    names = [name for name in [*LABELS, *settings] if name not in constant]
    named = []
    for run in frame.to_dict("records"):
        values = setting_text(run, names)
        partial = " (partial)" if is_partial(run["covered"]) else ""
        named.append((", ".join(values) or run["method"]) + partial)
    return named


def setting_text(run: Mapping[Any, Any], names: list[str]) -> list[str]:
    """The settings of a row in words, since a number means nothing without its name."""
    return [
        run[name]
        if "." not in name and isinstance(run[name], str)
        else f"{_said(name)}={run[name]}"
        for name in names
        if pd.notna(run[name])
    ]


def run_names(frame: pd.DataFrame, settings: list[str]) -> list[str]:
    named = zip(frame["method"], labels(frame, settings), strict=True)
    return [name if name.startswith(method) else f"{method}, {name}" for method, name in named]


def _said(name: str) -> str:
    first, *parts = name.split(".")
    if first == IDENTITY:
        return ".".join(dict.fromkeys([parts[0], parts[-1]]))
    return parts[-1] if parts else first


def _sharing(runs: list[StoredRun], found: list[dict[str, Any]]) -> list[list[int]]:
    groups = defaultdict(list)
    for i, (run, own) in enumerate(zip(runs, found, strict=True)):
        groups[str([run.plan[label] for label in LABELS]), str(own)].append(i)
    return [twins for twins in groups.values() if len(twins) > 1]


def _flat(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(item, f"{name}.{key}") for key, item in value.items()]
    return {key: item for part in parts for key, item in part.items()}


def _short(value: Any) -> Any:
    return value[:8] if isinstance(value, str) and DIGEST.fullmatch(value) else value


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else str(value)


def _order(value: Any) -> tuple[float, str]:
    return (value, "") if isinstance(value, int | float) else (math.inf, str(value))
