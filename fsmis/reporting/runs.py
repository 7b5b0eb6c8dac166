"""Runs as stored on disk, finished or not."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from fsmis.errors import UserError
from fsmis.reporting.statistics import by_scan
from fsmis.reporting.tables import completeness, is_partial
from fsmis.runs.records import RunFolder

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
        cells = [cell for cell in self.plan["cells"] if _selects(fold, cell.fold)]
        return set(self.folder.states(cells, self.scores)) == {"done"}

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
        raise UserError(f"{folder}: no run (plan.json) in it; give a results_dir of fsmis.run")
    return runs


def stored_runs(folder: Path) -> list[StoredRun]:
    """``read_runs`` of a folder that may hold none yet."""
    folders = [RunFolder(path.parent) for path in sorted(folder.rglob("plan.json"))]
    return [StoredRun(run, run.plan(), run.scores()) for run in folders]


def _selects(fold: Fold, number: int) -> bool:
    return number == fold if isinstance(fold, int) else fold == "all" or number in fold
