"""Runs as table, figure and page: ``python -m fsmis report DIR|BUNDLE... [--out DIR]``.

Reads score rows, plans, configurations and figures, never a model.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fsmis.cli import command_line
from fsmis.errors import UserError
from fsmis.files import write_atomic, write_figure
from fsmis.reporting import display
from fsmis.reporting.beside import beside_all
from fsmis.reporting.bundles import folder_of, opened
from fsmis.reporting.charts import draw
from fsmis.reporting.comparison import MAIN, grouped, require_main
from fsmis.reporting.page import write_page
from fsmis.reporting.runs import run_names, tabulate
from fsmis.reporting.statistics import METHOD
from fsmis.reporting.tables import POOLED_NOTE, markdown

CONVENTION = (
    "Dice in percent, over scans, then folds; mean over organs; sd over the scans' means. "
    f"{POOLED_NOTE} "
    "A row marked partial does not cover its dataset: do not compare it with the others."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``report.csv``, ``.md``, ``.png`` and ``index.html``, print the table and the paths."""
    parser = argparse.ArgumentParser(prog="python -m fsmis report", description=__doc__)
    parser.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="RUNS",
        help="folder of runs, such as results/runs, or bundles of them (.zip), several on the same "
        "data under the same protocol",
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: the first, or where its bundle lies)"
    )
    parser.add_argument(
        "--cases", type=int, default=3, help="worst and best scans of a method to show (default: 3)"
    )
    parser.add_argument(
        "--charted", type=int, default=24, help="runs of a dataset in a chart (default: 24)"
    )
    parser.add_argument(
        "--main",
        metavar="METHOD",
        help="the method, or the variant of a run, to test the others against on the page "
        f"(default: {MAIN}, where there is one run of it)",
    )
    options = parser.parse_args(arguments)
    sources = ", ".join(map(str, options.sources))
    out = options.out or folder_of(options.sources)
    with command_line(), ExitStack() as stack:
        for name, lowest in {"cases": 0, "charted": 1}.items():
            if getattr(options, name) < lowest:
                raise UserError(f"--{name} {getattr(options, name)}: choose {lowest} or more")
        runs = stack.enter_context(opened(options.sources))
        if options.main is not None:
            require_main(options.main, grouped(runs), sources)
        frame, settings, organs = tabulate(runs)
        title = f"Runs in {sources}"
        figure = draw(frame, settings, organs)
        paths = [out / f"report.{suffix}" for suffix in ("csv", "md", "png")]
        notes = [CONVENTION, METHOD]
        write_atomic(paths[0], frame.to_csv(index=False).encode())
        published = beside_all(runs, frame, settings)
        pages = [markdown(title, frame, notes)]
        pages += [markdown(found.title, found.table, found.notes) for found in published.values()]
        write_atomic(paths[1], "\n".join(pages).encode())
        write_figure(paths[2], figure, dpi=150)
        paths.append(out / "index.html")
        sizes = {"n_cases": options.cases, "n_charted": options.charted}
        write_page(paths[3], title, notes, runs, frame, settings, main=options.main, **sizes)
    # a terminal is narrow: a table for each dataset, what tells runs apart in one column
    for dataset, own in frame.groupby("dataset", sort=False):
        if found := published.get(str(dataset)):
            display.table(found.title, found.narrow, found.notes, found.own)
        else:
            narrow = own[[*organs, "mean", "sd"]].dropna(axis="columns", how="all")
            narrow.insert(0, "method", run_names(own, settings))
            display.table(", ".join([str(dataset), *own["protocol"].unique()]), narrow, [])
    display.console.print(CONVENTION)
    for path in paths:
        display.console.print(path)


if __name__ == "__main__":
    main()
