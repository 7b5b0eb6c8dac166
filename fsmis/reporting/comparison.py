"""Runs on the same scans under the same protocol, each compared with a main run."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from fsmis.errors import UserError
from fsmis.reporting.beside import data_of
from fsmis.reporting.runs import StoredRun
from fsmis.reporting.statistics import (
    Description,
    Difference,
    by_scan,
    describe,
    difference,
    holm,
    patient_means,
    smallest_p,
)
from fsmis.reporting.tables import MEAN, MEASURES, PAIRED

MAIN = "augment_match_prompt"  # the method that this project is about
TEST = (
    f"{PAIRED}: mean difference to {{main}} on the scans that both have scored. p: Wilcoxon's "
    "signed-rank test over patients, two-sided; p Holm: corrected for the number of runs tested."
)
NAMED = 3  # variants that a note names
SIGNIFICANT = 0.05  # a level that few pairs cannot reach, whatever their scores


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that may be compared, in the order of their folders.

    ``data`` says which scans of the dataset they use (see ``beside.data_of``).
    """

    dataset: str
    data: str
    protocol: str
    runs: list[StoredRun]

    @property
    def title(self) -> str:
        return f"{self.dataset}, {self.protocol}, {self.data}"

    def named(self, name: str) -> list[int]:
        """Positions of the runs of a method, or of a variant."""
        return [i for i, run in enumerate(self.runs) if name in (run.method, run.variant)]

    def main(self, name: str, asked: bool) -> int | None:
        """Position of the run of this method or variant; None unless there is exactly one.

        Raises UserError where there are several although the user named it (``asked``).
        """
        found = self.named(name)
        if len(found) > 1 and asked:
            variants = ", ".join(self.runs[i].variant for i in found)
            raise UserError(
                f"--main {name}: {len(found)} runs of it in {self.title}; name one by its variant: "
                f"{variants}"
            )
        return found[0] if len(found) == 1 else None


def grouped(runs: list[StoredRun]) -> list[Group]:
    """Split runs so that only those on the same data under the same protocol stay together."""
    groups: dict[tuple[str, str, str], Group] = {}
    for run in runs:
        key = run.plan["dataset"], data_of(run.plan), run.plan["protocol"]
        groups.setdefault(key, Group(*key, runs=[])).runs.append(run)
    return [groups[key] for key in sorted(groups)]


def require_distinct(groups: list[Group]) -> None:
    """Refuse (UserError) a run of which there are two copies."""
    for group in groups:
        seen: dict[tuple[str, str], StoredRun] = {}
        for run in group.runs:
            twin = seen.setdefault((run.method, run.variant), run)
            if twin is not run:
                raise UserError(
                    f"{run.folder.path}: the same run as {twin.folder.path}; give a folder with "
                    "one of them alone"
                )


def require_main(wanted: str, groups: list[Group], sources: str) -> None:
    """Refuse (UserError) a main run that is in none of the groups."""
    if not any(group.named(wanted) for group in groups):
        methods = {run.method for group in groups for run in group.runs}
        raise UserError(
            f"--main {wanted}: no run of such a method or variant in {sources}; "
            f"choose one of {', '.join(sorted(methods))}"
        )


def how_tested(group: Group, main: int | None, wanted: str, names: Mapping[Any, str]) -> list[str]:
    """What the runs of a group are tested against, or why they are not, as notes.

    ``main`` is the position of the main run, ``wanted`` its method or variant; ``names`` are by
    position.
    """
    if main is not None:
        return [TEST.format(main=f"{names[main]} ({group.runs[main].variant})")]
    found = group.named(wanted)
    if not found:
        return [f"No test: no run of {wanted} here; choose the main one with --main."]
    variants = ", ".join(group.runs[position].variant for position in found[:NAMED])
    more = ", ..." if len(found) > NAMED else ""
    return [
        f"No test: {len(found)} runs of {wanted} here; choose one of them, --main {variants}{more}."
    ]


def against(group: Group, main: int, measure: str) -> pd.DataFrame:
    """The other runs of a group against its main one, in the mean over organs of a measure.

    Columns ``difference``, ``pairs`` and ``p`` of ``statistics.Difference``, and ``p_holm``,
    corrected over these runs. Index: position in the group.
    """
    scores = [by_scan(run.scores, measure) for run in group.runs]
    others = [position for position in range(len(scores)) if position != main]
    found = [Difference.of(scores[main], scores[position]) for position in others]
    rows = [(one.mean, one.pairs, one.p) for one in found]
    frame = pd.DataFrame(rows, others, ["difference", "pairs", "p"])
    return frame.assign(p_holm=holm(frame["p"].to_numpy(float)))


def compared(group: Group, main: int | None) -> pd.DataFrame:
    """Dice of every run in a group, and how it differs from the main one.

    A row for each run and organ, then for its ``mean`` over organs. Columns: ``position`` of the
    run; ``organ``; ``mean``, ``sd``, ``median``, ``n``, ``low``, ``high`` (see
    ``statistics.describe``); the same of the difference to the main run on the scans that both have
    scored, ``difference``, ``difference_low``, ``difference_high``, ``pairs``; ``unpaired``
    patients that only one of both has scored; ``p`` of ``statistics.paired``; ``p_holm``, corrected
    over the other runs for the mean, and over all their organs for the organs.
    """
    dice = [run.dice for run in group.runs]
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
            f"{run.method} {run.variant}: {row['pairs']:.0f} pairs; {row['unpaired']:.0f} "
            "scans that one of both lacks are left out of the difference."
        )
    yield from few_pairs(means)


def few_pairs(tested: pd.DataFrame) -> Iterator[str]:
    """A line on p values that few pairs keep from being small; columns ``pairs`` and ``p``."""
    tested = tested[tested["p"].notna()]
    if len(tested):
        most = int(tested["pairs"].max())
        smallest = len(tested) * smallest_p(most)
        if smallest > SIGNIFICANT:
            yield (
                f"Few pairs: with {most} of them and {len(tested)} tests no p is below "
                f"{min(1, smallest):.2g}, however large a difference is."
            )


def _difference(main: pd.DataFrame, own: pd.DataFrame) -> dict[str, float]:
    found = Difference.of(main, own)
    interval = describe(difference(main, own))
    scored = len(patient_means(main)) + len(patient_means(own))
    return {
        "difference": found.mean,
        "difference_low": interval.low,
        "difference_high": interval.high,
        "pairs": found.pairs,
        "unpaired": scored - 2 * found.pairs,
        "p": found.p,
    }


def _columns(dice: pd.DataFrame, organ: str) -> pd.DataFrame:
    return dice if organ == MEAN else dice.reindex(columns=[organ])


@dataclass(frozen=True, eq=False)
class Tested:
    """The differences that a page reports.

    Attributes:
        by_measure: frames of ``comparison.against``, by measure; index: position of the run, only
            for those compared with a main one.
        notes: what is tested and what is not, by dataset.
    """

    by_measure: dict[str, pd.DataFrame]
    notes: dict[str, list[str]]


def paired_tests(runs: list[StoredRun], names: pd.Series, main: str | None) -> Tested:
    """Test every run with a main one in its group, whatever its dataset and protocol.

    ``names`` are by position; ``main`` is the method or variant that the user has named, or None
    for ``comparison.MAIN``. Raises UserError where several runs of a group match the named one.
    """
    notes: dict[str, list[str]] = defaultdict(list)
    found: dict[str, list[pd.DataFrame]] = {measure: [] for measure in MEASURES}
    for group in grouped(runs):
        if len(group.runs) == 1:
            continue
        positions = [runs.index(run) for run in group.runs]
        wanted = main or MAIN
        chosen = group.main(wanted, asked=main is not None)
        said = how_tested(group, chosen, wanted, dict(enumerate(names[positions])))
        if chosen is not None:
            for measure in MEASURES:
                tested = against(group, chosen, measure)
                found[measure].append(tested.set_axis([positions[i] for i in tested.index]))
            said += few_pairs(found["dice"][-1])
        notes[group.dataset] += [f"{group.protocol}, {group.data}. {' '.join(said)}"]
    nothing = pd.DataFrame(columns=["difference", "pairs", "p", "p_holm"], dtype=float)
    return Tested(
        {name: pd.concat(parts) if parts else nothing for name, parts in found.items()}, notes
    )
