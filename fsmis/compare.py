"""Measured against published: ``python -m fsmis.compare RESULTS [--main METHOD]``.

Runs on the same scans under the same protocol stand in one table: mean, deviation and interval over
patients, and the difference to a main run with Wilcoxon's signed-rank test and Holm's correction.
Then they stand beside the published rows of their dataset, each with its source and the difference
alone: papers print no scores by scan. Runs of other scans or protocols are compared separately.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fsmis.cli import command_line
from fsmis.errors import UserError
from fsmis.files.atomic import write_atomic
from fsmis.reporting.comparison import MAIN, grouped, require_distinct, require_main
from fsmis.reporting.measured import compare
from fsmis.reporting.published import PUBLISHED, read_published
from fsmis.reporting.runs import StoredRun, read_runs
from fsmis.runs import display


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the comparisons, write ``compare.csv`` (every organ) and ``compare.md``."""
    options = _parser().parse_args(arguments)
    folder, asked = options.folder, options.main is not None
    setting = None if options.setting == "all" else options.setting
    out = options.out or folder
    with command_line():
        published = read_published(options.published)
        groups = grouped(_of_dataset(read_runs(folder), options.dataset, folder))
        require_distinct(groups)
        wanted = options.main or MAIN
        if asked:
            require_main(wanted, groups, folder)
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
        prog="python -m fsmis.compare",
        description=__doc__,
        epilog="example: python -m fsmis.compare results/runs --dataset chaos_mri --main alpnet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="RESULTS", type=Path, help="folder of runs: results/runs")
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
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to write (default: RESULTS)")
    return parser


def _of_dataset(runs: list[StoredRun], dataset: str | None, folder: Path) -> list[StoredRun]:
    chosen = [run for run in runs if dataset in (None, run.plan["dataset"])]
    if not chosen:
        there = ", ".join(sorted({run.plan["dataset"] for run in runs}))
        raise UserError(f"--dataset {dataset}: no run of it in {folder}; choose one of {there}")
    return chosen


if __name__ == "__main__":
    main()
