"""The tables of a comparison: runs against a main one, and all of them beside published rows."""

from dataclasses import dataclass, replace

import pandas as pd

from fsmis.reporting.beside import HERE, TO_PAPER, Beside, beside, is_comparable
from fsmis.reporting.comparison import Group, caveats, compared, how_tested
from fsmis.reporting.overview import run_names, tabulate
from fsmis.reporting.statistics import METHOD
from fsmis.reporting.tables import MEAN, PAIRED, markdown
from fsmis.runs import display

TO_MAIN = "to main"
INTERVAL = "95 % interval"
NARROW = ["method", "n", "mean", "sd", INTERVAL, PAIRED, "p Holm"]  # of a terminal
CONVENTION = (
    "Dice in percent, mean over scans, then folds, then organs; n patients; sd and median over "
    f"their means. {METHOD}, support scans held fixed."
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is printed and written of one group of runs.

    Attributes:
        title: of the group.
        table: a row for each run: ``method``; ``n``, ``mean``, ``sd``, ``median`` and interval of
            its Dice; where there is a main run, ``paired difference`` to it with its interval,
            ``pairs``, ``p`` and ``p Holm``; ``covered``; ``variant``.
        notes: how to read it.
        published: the runs beside published rows, with their difference ``to main``; None where
            the dataset has none.
        rows: the same for every organ, long, with all published rows of the dataset.
    """

    title: str
    table: pd.DataFrame
    notes: list[str]
    published: Beside | None
    rows: pd.DataFrame

    def markdown(self) -> str:
        """Both tables with their notes."""
        pages = [markdown(self.title, self.table, self.notes)]
        if self.published is not None:
            shown = self.published
            pages.append(markdown(shown.title, shown.table, shown.notes))
        return "\n".join(pages)

    def print(self) -> None:
        """Both tables, as much as a terminal has room for."""
        display.table(self.title, self.table[[n for n in NARROW if n in self.table]], self.notes)
        if self.published is not None:
            shown = self.published
            names = [name for name in ("method", MEAN, TO_MAIN, TO_PAPER) if name in shown.narrow]
            display.table(shown.title, shown.narrow[names], shown.notes, shown.own)


def compare(
    group: Group,
    main: int | None,
    wanted: str,
    published: pd.DataFrame,
    setting: str | None,
    everything: bool,
) -> Comparison:
    """Compare the runs of a group with its main one, and with published rows.

    Args:
        group: of runs.
        main: position of the main run; None leaves out the differences to it.
        wanted: its method or variant, for the notes.
        published: see ``published.read_published``.
        setting: see ``published.select``.
        everything: see ``published.select``.
    """
    frame, settings, _ = tabulate(group.runs)
    frame = frame.assign(data=group.data).assign(run=lambda own: run_names(own, settings))
    statistics = compared(group, main)
    of_mean = statistics[statistics["organ"] == MEAN].set_index("position").loc[frame.index]
    shown = beside(frame, settings, published, setting, everything)
    theirs = published[published["dataset"] == group.dataset].rename(columns={"dice": MEAN})
    if main is not None:
        dice = statistics[statistics["position"] == main].set_index("organ")[MEAN]
        if not is_comparable(frame)[main]:
            dice *= float("nan")
        theirs = theirs.assign(difference=theirs[MEAN] - theirs["organ"].map(dice))
        if shown is not None:
            shown = _with_main(shown, of_mean["difference"], dice[MEAN])
    notes = [
        CONVENTION,
        *how_tested(group, main, wanted, frame["run"].to_dict()),
        *caveats(group, statistics),
    ]
    table = _table(frame, of_mean, main is not None)
    return Comparison(group.title, table, notes, shown, _rows(group, frame, statistics, theirs))


def _rows(
    group: Group, frame: pd.DataFrame, statistics: pd.DataFrame, theirs: pd.DataFrame
) -> pd.DataFrame:
    """Own runs, then published rows, a row for each organ."""
    labels = frame[["method", "run", "variant", "protocol", "data", "covered"]]
    ours = statistics.join(labels, on="position").drop(columns="position").assign(source=HERE)
    rows = pd.concat([ours, theirs], ignore_index=True).rename(columns={MEAN: "dice"})
    rows = rows.assign(comparison=group.title, dataset=group.dataset)
    rows = rows.astype(dict.fromkeys(["n", "pairs", "unpaired", "year"], "Int64"))
    first = ["comparison", "dataset", "method", "run", "organ", "dice"]
    return rows[[*first, *(name for name in rows if name not in first)]]


def _table(frame: pd.DataFrame, of_mean: pd.DataFrame, tested: bool) -> pd.DataFrame:
    table = pd.DataFrame({"method": frame["run"]}).join(of_mean[["n", MEAN, "sd", "median"]])
    table[INTERVAL] = _interval(of_mean["low"], of_mean["high"], "–")
    if tested:
        table[PAIRED] = of_mean["difference"].astype(float)
        ends = of_mean["difference_low"], of_mean["difference_high"]
        table["its interval"] = _interval(*ends, " to ")
        table["pairs"] = of_mean["pairs"].astype("Int64")
        table[["p", "p Holm"]] = of_mean[["p", "p_holm"]].astype(float)
    return table.join(frame[["covered", "variant"]])


def _interval(low: pd.Series, high: pd.Series, word: str) -> list[str]:
    ends = pd.concat([low, high], axis="columns").to_numpy(float)
    return [f"{bottom:.2f}{word}{top:.2f}" if bottom <= top else "–" for bottom, top in ends]


def _with_main(shown: Beside, differences: pd.Series, main: float) -> Beside:
    """Published rows with the plain difference of the means, own runs with that of their pairs."""
    table = shown.table.copy()
    plain = table[MEAN] - main
    plain.iloc[shown.own] = differences.to_numpy(float)
    table.insert(list(table).index(TO_PAPER), TO_MAIN, plain)
    note = f"{TO_MAIN}: of own runs the {PAIRED}, of published rows that of the printed means."
    return replace(shown, table=table, notes=[note, *shown.notes])
