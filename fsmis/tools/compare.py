"""Measured against published: ``python -m fsmis compare RUNS... [--main METHOD]``.

Runs on the same scans under the same protocol stand in one table: mean, deviation and interval over
patients, and the difference to a main run with Wilcoxon's signed-rank test and Holm's correction.
Then they stand beside the published rows of their dataset, each with its source and the difference
alone: papers print no scores by scan. Runs of other scans or protocols are compared separately.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fsmis.cli import command_line
from fsmis.errors import UserError
from fsmis.files import write_atomic
from fsmis.reporting import display
from fsmis.reporting.beside import HERE, TO_PAPER, Beside, beside, is_comparable
from fsmis.reporting.bundles import folder_of, opened
from fsmis.reporting.comparison import (
    MAIN,
    Group,
    caveats,
    compared,
    grouped,
    how_tested,
    require_distinct,
    require_main,
)
from fsmis.reporting.published import PUBLISHED, read_published
from fsmis.reporting.runs import StoredRun, run_names, tabulate
from fsmis.reporting.statistics import METHOD
from fsmis.reporting.tables import MEAN, PAIRED, POOLED, POOLED_NOTE, markdown


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the comparisons, write ``compare.csv`` (every organ) and ``compare.md``."""
    options = _parser().parse_args(arguments)
    sources, asked = ", ".join(map(str, options.sources)), options.main is not None
    setting = None if options.setting == "all" else options.setting
    out = options.out or folder_of(options.sources)
    with command_line(), ExitStack() as stack:
        published = read_published(options.published)
        runs = stack.enter_context(opened(options.sources))
        groups = grouped(_of_dataset(runs, options.dataset, sources))
        require_distinct(groups)
        wanted = options.main or MAIN
        if asked:
            require_main(wanted, groups, sources)
        comparisons = [
            compare(group, group.main(wanted, asked), wanted, published, setting, options.all_rows)
            for group in groups
        ]
        rows = pd.concat([comparison.rows for comparison in comparisons])
        pages = "\n".join(comparison.markdown() for comparison in comparisons)
        paths = [out / "compare.csv", out / "compare.md"]
        write_atomic(paths[0], rows.to_csv(index=False).encode())
        write_atomic(paths[1], pages.encode())
    for comparison in comparisons:
        comparison.print()
    if len(groups) > 1:
        display.console.print(f"{len(groups)} comparisons: other scans or protocols are not mixed.")
    for path in paths:
        display.console.print(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fsmis compare",
        description=__doc__,
        epilog="example: python -m fsmis compare results/runs --dataset chaos_mri --main alpnet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources",
        metavar="RUNS",
        type=Path,
        nargs="+",
        help="folder of runs, such as results/runs, or bundles of them (.zip), several on the same "
        "data under the same protocol",
    )
    parser.add_argument(
        "--main",
        metavar="METHOD",
        help=f"the method, or the variant of a run, to compare the others with (default: {MAIN}, "
        "where there is one run of it)",
    )
    parser.add_argument("--dataset", help="only runs of this dataset, such as chaos_mri")
    parser.add_argument(
        "--setting",
        choices=["1", "2", "all"],
        default="1",
        help="of published rows: in 1, test organs may appear unlabelled in training, in 2 not "
        "(default: 1, what training-free methods are compared with)",
    )
    parser.add_argument(
        "--all-rows",
        action="store_true",
        help="published rows of every source, those that look mistaken too (default: one for each "
        "method and setting)",
    )
    parser.add_argument(
        "--published",
        metavar="CSV",
        type=Path,
        default=PUBLISHED,
        help="table of published numbers (default: results/published.csv of the repository)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="where to write (default: the first RUNS, or where its bundle lies)",
    )
    return parser


def _of_dataset(runs: list[StoredRun], dataset: str | None, sources: str) -> list[StoredRun]:
    chosen = [run for run in runs if dataset in (None, run.plan["dataset"])]
    if not chosen:
        there = ", ".join(sorted({run.plan["dataset"] for run in runs}))
        raise UserError(f"--dataset {dataset}: no run of it in {sources}; choose one of {there}")
    return chosen


TO_MAIN = "to main"
INTERVAL = "95 % interval"
NARROW = ["method", "n", "mean", "sd", INTERVAL, PAIRED, "p Holm"]  # of a terminal
CONVENTION = (
    "Dice in percent, mean over scans, then folds, then organs; n patients; sd and median over "
    f"their means. {METHOD}, support scans held fixed. {POOLED_NOTE}"
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is printed and written of one group of runs.

    Attributes:
        title: of the group.
        table: a row for each run: ``method``; ``n``, ``mean``, ``pooled Dice``, ``sd``,
            ``median`` and interval of its Dice; where there is a main run,
            ``paired difference`` to it with its interval, ``pairs``, ``p`` and ``p Holm``;
            ``covered``; ``variant``.
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
    table = pd.DataFrame({"method": frame["run"]}).join(of_mean[["n", MEAN]])
    table = table.join(frame[POOLED]).join(of_mean[["sd", "median"]])
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


if __name__ == "__main__":
    main()
