"""What trainings are still to do, and how long like ones took, without any training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from fsmis.episodic.fold import TIMING, FoldTraining
from fsmis.episodic.network import EpisodicNetwork
from fsmis.episodic.training import EpisodicTraining
from fsmis.runs.records import read_json
from fsmis.training_scans import TrainingScans

# Of the default settings on one CPU core, where 150 to 200 steps take 3 to 4 minutes.
DEFAULT_STEP_S = 1.0


@dataclass(frozen=True)
class PlannedFold:
    """The training of a fold that is not finished.

    Attributes:
        steps: of the optimiser, to do.
        timed: seconds that a step of each finished training with these settings took, reading the
            scans included; empty where there is none.
        hosts: machines on which they did.
    """

    steps: int
    timed: tuple[float, ...]
    hosts: frozenset[str]

    @property
    def seconds(self) -> float:
        """Time it takes, where none was timed that of the default settings on one CPU core."""
        return self.steps * (median(self.timed) if self.timed else DEFAULT_STEP_S)


class PlannedTraining(EpisodicTraining):
    """Stands in for the training of a method: notes what it would train, and trains nothing.

    Attributes:
        folds: those not finished, by the folder that keeps them.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.folds: dict[Path, PlannedFold] = {}

    def train(
        self, network: EpisodicNetwork, scans: TrainingScans, name: str, settings: dict[str, Any]
    ) -> pd.DataFrame:
        """Load a network as far as it has been trained; see ``EpisodicTraining.train``."""
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
