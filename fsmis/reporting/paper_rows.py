"""The rows of a paper's table: Dice of runs with its spread, and how sure a difference is.

A partial run, which does not cover its dataset, is shown and never compared.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from fsmis.reporting.runs import StoredRun
from fsmis.reporting.statistics import METHOD, Difference, describe, holm
from fsmis.reporting.tables import PAIRED, POOLED, POOLED_NOTE, summarise

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
