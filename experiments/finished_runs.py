"""Runs that a table needs, and those that are there.

An experiment, ``conf/experiment/<name>.yaml``, says which runs its table needs. Each is looked up
by what identifies it (method, protocol, dataset, seed, weights, scoring code, see
``variant.configured``), so a run counts as finished where ``python -m fsmis.run`` would find it
done, whichever command made it and for whichever table.
"""

import itertools
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from fsmis.cli import CONF_DIR
from fsmis.errors import UserError
from fsmis.reporting.tables import completeness
from fsmis.runs.records import RunFolder
from fsmis.runs.variant import configured


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run that an experiment plans.

    Attributes:
        values: its value of each key that the experiment or the user sweeps, such as
            ``{"matcher": "ssim"}``.
        method: its choice of method.
        identity: see ``variant.configured``.
    """

    values: dict[str, str]
    method: str
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
        self.name = name
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            sweep = self._composed([]).hydra.sweeper.params or {}
            words = [*(f"{key}={values}" for key, values in sweep.items()), *overrides]
            parsed = OverridesParser.create().parse_overrides(words)
            last = {override.get_key_element(): override for override in parsed}
            swept = {
                key: list(override.sweep_string_iterator())
                if override.is_sweep_override()
                else [override.get_value_element_as_str()]
                for key, override in last.items()
                if override.is_sweep_override() or key in sweep
            }
            self._shared = [str(o.input_line) for key, o in last.items() if key not in swept]
            self.base = self._planned({})
            combinations = itertools.product(*swept.values())
            self.runs = [self._planned(dict(zip(swept, c, strict=True))) for c in combinations]

    def command(self, runs: Sequence[PlannedRun], results: Path, *more: str) -> str:
        """The command that makes some of the runs; it leaves what is done as it is."""
        values: dict[str, dict[str, None]] = {}  # of each key, each once, in order
        for run in runs:
            for key, value in run.values.items():
                values.setdefault(key, {})[value] = None
        swept = [f"{key}={','.join(found)}" for key, found in values.items()]
        words = [f"experiment={self.name}", *self._shared, *more, *swept]
        return shlex.join(["python", "-m", "fsmis.run", "-m", *words, f"results_dir={results}"])

    def _planned(self, values: dict[str, str]) -> PlannedRun:
        config = self._composed([*self._shared, *(f"{key}={v}" for key, v in values.items())])
        method = config.hydra.runtime.choices["method"]
        with open_dict(config):
            del config["hydra"]
        return PlannedRun(values, method, json.loads(json.dumps(configured(config))))

    def _composed(self, overrides: list[str]) -> DictConfig:
        words = [f"experiment={self.name}", *overrides]
        return compose("config", words, return_hydra_config=True)


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
            run
            for run in self._runs
            if run.plan["method"] == planned.method
            and not run.scores.empty
            and {k: v for k, v in run.plan["identity"].items() if k != "data"} == planned.identity
        ]
        return max(found, key=_fullest_and_latest, default=None)

    def data_root(self, dataset: str) -> list[str]:
        """``["dataset.root=..."]`` as runs of a dataset have it; empty where there are none."""
        of_dataset = [run for run in self._runs if run.plan["dataset"] == dataset]
        return [f"dataset.root={of_dataset[0].config.dataset.root}"] if of_dataset else []


def _fullest_and_latest(run: FinishedRun) -> tuple[int, float]:
    return len(run.scores), (run.folder.path / "scores.csv").stat().st_mtime
