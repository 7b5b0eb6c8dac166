"""Finished runs side by side: Dice with its spread, and how sure a difference is.

A partial run, which does not cover its dataset, is shown and never compared.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from experiments.finished_runs import FinishedRun
from fsmis.reporting.statistics import METHOD, by_scan, describe, holm, paired
from fsmis.reporting.tables import MEAN, summarise

NOTE = f"Dice in percent, over scans, then folds; mean over organs. sd over patients. {METHOD}."
PARTIAL_NOTE = "Partial runs do not cover their dataset: not to be compared with the others."
DATA_NOTE = "The runs read different data files: not to be compared."
TEST_NOTE = (
    "p, and difference of the mean: to {reference}; Wilcoxon's signed-rank test over the same "
    "patients, Holm's correction."
)


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A run in a comparison.

    Attributes:
        names: what tells it from the others, by column of the table.
        run: its plan and scores.
        dice: percent, by organ, then their mean.
        scans: see ``statistics.by_scan``.
    """

    names: dict[str, str]
    run: FinishedRun
    dice: pd.Series
    scans: pd.DataFrame

    @classmethod
    def of(cls, names: dict[str, str], run: FinishedRun) -> "ComparedRun":
        """A run with its Dice."""
        dice = summarise(run.scores, run.plan["organs"]).set_index("organ")["dice"]
        return cls(names, run, dice, by_scan(run.scores))

    @property
    def label(self) -> str:
        """Its names in one line, and whether it is partial."""
        partial = " (partial)" if self.run.partial else ""
        return ", ".join(value for value in self.names.values() if value) + partial


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs in the order of a table.

    Attributes:
        runs: those with scores.
        reference: the one that others are tested against; None where it is not there or partial.
    """

    runs: list[ComparedRun]
    reference: ComparedRun | None

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row for each run.

        Columns: names; ``protocol``; organs and ``mean``, Dice in percent; ``sd``, ``median``,
        ``low`` and ``high`` as in ``statistics.Description``; ``patients``; ``difference`` to the
        reference in percent points and its ``p``; ``covered`` as ``tables.completeness`` has it;
        ``variant``.
        """
        differences, p_values = self._tested()
        rows = []
        for run, difference, p in zip(self.runs, differences, p_values, strict=True):
            spread = describe(run.scans)
            rows.append(
                run.names
                | {"protocol": run.run.plan["protocol"]}
                | run.dice.to_dict()
                | {"sd": spread.sd, "median": spread.median, "low": spread.low, "high": spread.high}
                | {"patients": spread.n, "difference": difference, "p": p}
                | {"covered": run.run.covered, "variant": run.run.plan["variant"]}
            )
        return pd.DataFrame(rows)

    def notes(self) -> list[str]:
        """How the table is to be read."""
        notes = [NOTE]
        if any(run.run.partial for run in self.runs):
            notes.append(PARTIAL_NOTE)
        if self.reference is not None and len(self.runs) > 1:
            notes.append(TEST_NOTE.format(reference=self.reference.label))
        if len({run.run.plan["identity"]["data"] for run in self.runs}) > 1:
            notes.append(DATA_NOTE)
        oracles = {run.run.plan["oracle"] for run in self.runs}
        if len(oracles) == 1:
            notes.append(f"Known of the query's true extent: {oracles.pop()}.")
        return notes

    def _tested(self) -> tuple[np.ndarray, np.ndarray]:
        """Difference of each run to the reference, and p; NaN where nothing is compared."""
        difference, p = np.full((2, len(self.runs)), np.nan)
        if self.reference is not None:
            for number, run in enumerate(self.runs):
                if run is not self.reference and not run.run.partial:
                    difference[number] = run.dice[MEAN] - self.reference.dice[MEAN]
                    p[number] = paired(self.reference.scans, run.scans)
        return difference, holm(p)
