"""Runs on the same scans under the same protocol, each against a main one."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from fsmis.errors import UserError
from fsmis.reporting.beside import data_of
from fsmis.reporting.collection import StoredRun
from fsmis.reporting.statistics import (
    Description,
    by_scan,
    describe,
    difference,
    holm,
    paired,
    patient_means,
    smallest_p,
)
from fsmis.reporting.tables import MEAN

SIGNIFICANT = 0.05  # a level that few pairs cannot reach, whatever their scores


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that may be compared.

    Attributes:
        dataset: name of the dataset.
        data: which scans of it (see ``beside.data_of``).
        protocol: name of the protocol.
        runs: in the order of their folders.
    """

    dataset: str
    data: str
    protocol: str
    runs: list[StoredRun]

    @property
    def title(self) -> str:
        """Dataset, protocol and data."""
        return f"{self.dataset}, {self.protocol}, {self.data}"

    def named(self, name: str) -> list[int]:
        """Positions of the runs of a method, or of a variant."""
        return [i for i, run in enumerate(self.runs) if name in (_method(run), _variant(run))]

    def main(self, name: str, asked: bool) -> int | None:
        """The run to compare the others with.

        Args:
            name: of its method or variant.
            asked: the user has named it.

        Returns:
            Its position; None where there is none, or where there are several and none was asked
            for.

        Raises:
            UserError: several runs are of the method that was asked for.
        """
        found = self.named(name)
        if len(found) > 1 and asked:
            variants = ", ".join(_variant(self.runs[i]) for i in found)
            raise UserError(
                f"--main {name}: {len(found)} runs of it in {self.title}; name one by its variant: "
                f"{variants}"
            )
        return found[0] if len(found) == 1 else None


def grouped(runs: list[StoredRun]) -> list[Group]:
    """Split runs so that only those on the same data under the same protocol stay together.

    Raises:
        UserError: a run lies there twice.
    """
    groups: dict[tuple[str, str, str], Group] = {}
    seen: dict[tuple[str, ...], StoredRun] = {}
    for run in runs:
        key = run.plan["dataset"], data_of(run.plan), run.plan["protocol"]
        twin = seen.setdefault((*key, _method(run), _variant(run)), run)
        if twin is not run:
            raise UserError(
                f"{run.folder.path}: the same run as {twin.folder.path}; give a folder with one of "
                "them alone"
            )
        groups.setdefault(key, Group(*key, runs=[])).runs.append(run)
    return [groups[key] for key in sorted(groups)]


def compared(group: Group, main: int | None) -> pd.DataFrame:
    """Dice of every run in a group, and how it differs from the main one.

    Returns:
        Long: a row for each run and organ, then for its ``mean`` over organs. Columns ``position``
        of the run, ``organ``; ``mean``, ``sd``, ``median``, ``n``, ``low``, ``high`` (see
        ``statistics.describe``); the same of the difference to the main run on the scans that both
        have scored, ``difference``, ``difference_low``, ``difference_high``, ``pairs``;
        ``unpaired`` patients that only one of both has scored; ``p`` of ``statistics.paired``;
        ``p_holm``, corrected over the other runs for the mean, over all organs of theirs for the
        organs.
    """
    dice = [by_scan(run.scores) for run in group.runs]
    rows: list[dict[str, Any]] = []
    for i, run in enumerate(group.runs):
        for organ in [*run.plan["organs"], MEAN]:
            own = _columns(dice[i], organ)
            row = {"position": i, "organ": organ} | asdict(describe(own))
            if main is not None and i != main:
                row |= _difference(_columns(dice[main], organ), own)
            rows.append(row)
    tested = ["difference", "difference_low", "difference_high", "pairs", "unpaired", "p"]
    columns = ["position", "organ", *Description.__annotations__, *tested]
    frame = pd.DataFrame(rows, columns=columns)
    of_mean = frame["organ"] == MEAN
    frame["p_holm"] = np.nan
    for family in (of_mean, ~of_mean):
        frame.loc[family, "p_holm"] = holm(frame.loc[family, "p"].to_numpy(float))
    return frame


def caveats(group: Group, table: pd.DataFrame) -> Iterator[str]:
    """What a reader of ``compared`` has to know about pairs, a line for each."""
    means = table[table["organ"] == MEAN]
    for row in means[means["unpaired"] > 0].to_dict("records"):
        run = group.runs[row["position"]]
        yield (
            f"{_method(run)} {_variant(run)}: {row['pairs']:.0f} pairs; {row['unpaired']:.0f} "
            "scans that one of both lacks are left out of the difference."
        )
    tests = int(means["p"].notna().sum())
    smallest = smallest_p(int(means["pairs"].min())) if tests else 0
    if tests * smallest > SIGNIFICANT:
        yield (
            f"Few pairs: with {means['pairs'].min():.0f} of them and {tests} tests no p is below "
            f"{min(1, tests * smallest):.2g}, however large a difference is."
        )


def _difference(main: pd.DataFrame, own: pd.DataFrame) -> dict[str, float]:
    pairs = difference(main, own)
    described = describe(pairs)
    scored = len(patient_means(main)) + len(patient_means(own))
    return {
        "difference": described.mean,
        "difference_low": described.low,
        "difference_high": described.high,
        "pairs": described.n,
        "unpaired": scored - 2 * described.n,
        "p": paired(main, own),
    }


def _columns(dice: pd.DataFrame, organ: str) -> pd.DataFrame:
    return dice if organ == MEAN else dice.reindex(columns=[organ])


def _method(run: StoredRun) -> str:
    return run.plan["method"]


def _variant(run: StoredRun) -> str:
    return run.plan["variant"]
