"""Runs of several groups, each tested against the main one of its group."""

from collections import defaultdict
from dataclasses import dataclass

import pandas as pd

from fsmis.reporting.comparison import MAIN, against, few_pairs, grouped, how_tested
from fsmis.reporting.runs import StoredRun
from fsmis.reporting.tables import MEASURES


@dataclass(frozen=True, eq=False)
class Tested:
    """The differences that a page tells.

    Attributes:
        by_measure: columns as ``comparison.against`` has them, by measure; index: position of the
            run, those alone that are compared with a main one.
        notes: what is tested and what is not, by dataset.
    """

    by_measure: dict[str, pd.DataFrame]
    notes: dict[str, list[str]]


def paired_tests(runs: list[StoredRun], names: pd.Series, main: str | None) -> Tested:
    """Test every run that has a main one beside it.

    Args:
        runs: of any datasets and protocols.
        names: of the runs, by their position.
        main: method or variant of the main runs that the user has named; None for
            ``comparison.MAIN``.

    Raises:
        UserError: several runs of a group are of the method that was asked for.
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
