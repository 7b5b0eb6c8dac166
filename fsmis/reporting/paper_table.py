"""What the tables of a paper share: command line, notes on runs that are missing, their files."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from fsmis.errors import UserError
from fsmis.files import require_name, write_atomic, write_figure
from fsmis.reporting import display
from fsmis.reporting.bundles import folder_of, opened
from fsmis.reporting.paper_rows import (
    COLUMNS,
    Experiment,
    FinishedRuns,
    PlannedRun,
    Row,
    Rows,
)
from fsmis.reporting.tables import PAIRED, latex, markdown, shown
from fsmis.runs.sweep import at_home, own_options

NONE: Mapping[str, str] = MappingProxyType({})
DPI = 200
LISTED = 10  # missing runs that a table names, more are counted


@dataclass(frozen=True)
class Request:
    """What a user asks of a table.

    Attributes:
        name: of the table, and of the experiment that plans its runs.
        stem: path of the files to write, without suffix.
        overrides: settings of all runs, as ``fsmis run`` takes them, including the dataset.
    """

    name: str
    runs: FinishedRuns
    stem: Path
    overrides: list[str]


@dataclass(frozen=True, eq=False)
class Found:
    """The runs of a table that exist, the names of the missing ones, and the commands that make
    every requested run that is missing, partial or of earlier code."""

    rows: Rows
    missing: list[str]
    commands: list[str]

    def notes(self) -> list[str]:
        """What a reader of the table has to know about missing runs."""
        if len(self.missing) > LISTED:
            return [f"{len(self.missing)} runs of this table are not there."]
        return [f"Not run: {'; '.join(self.missing)}."] if self.missing else []


Names = Callable[[PlannedRun], dict[str, str]]


@contextmanager
def requested(
    script: str, doc: str | None, arguments: Sequence[str] | None, tables: Mapping[str, str] = NONE
) -> Iterator[Request]:
    """What the command line of ``python -m experiments.<script>``, described by ``doc``, asks for.

    Its runs are to be read inside the block. A script with several tables names them by the word
    that selects each. Raises UserError where a folder or bundle of runs is not there or damaged.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{script}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if tables:
        parser.add_argument("table", metavar="NAME", choices=tables, help=f"{', '.join(tables)}")
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUNS [key=value]",
        help="results_dir of the runs, e.g. results/runs, or bundles; settings of all runs",
    )
    parser.add_argument("--dataset", default="chaos_mri", help="choice of dataset (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder to write to (default: the results folder)")
    parser.add_argument("--config-dir", type=Path, help="options of your own, as for fsmis run")
    options = parser.parse_intermixed_args(arguments)
    require_name("--dataset", options.dataset)
    words = [at_home(word) for word in options.words]
    sources = [Path(word) for word in words if "=" not in word or Path(word).exists()]
    overrides = [word for word in words if Path(word) not in sources]
    if not sources:
        parser.error("name a folder of runs, such as results/runs, or a bundle")
    with opened(sources, or_none=True) as found:
        runs = FinishedRuns(folder_of(sources), found)
        chosen = [*own_options(options.config_dir), f"dataset={options.dataset}"]
        settings = [*chosen, *runs.data_root(options.dataset)]
        name = tables[options.table] if tables else script
        stem = (options.out or runs.results) / f"{name}_{options.dataset}"
        yield Request(name, runs, stem, [*settings, *overrides])


def find(request: Request, names: Names, experiments: Sequence[str] = ()) -> Found:
    """Look up the runs of a table; UserError where none of them exists.

    ``names`` gives the label columns of a row. ``experiments`` plan the runs (by default the one
    named like the table); the base of the first is the reference of the table. What several of them
    plan, as the user's settings may have it, is a run of the first alone.
    """
    plans = [Experiment(name, request.overrides) for name in experiments or [request.name]]
    rows, reference, missing, commands = [], None, [], []
    earlier: list[PlannedRun] = []
    for experiment in plans:
        unfinished = []
        new = [run for run in experiment.runs if not any(map(run.same, earlier))]
        earlier += new
        for planned in new:
            run = request.runs.find(planned)
            current = run is not None
            if run is None or not run.has(planned.fold):
                unfinished.append(planned)
            run = run or request.runs.find(planned, any_code=True)
            if run is None:
                missing.append(", ".join(names(planned).values()))
                continue
            rows.append(Row(names(planned), run, current))
            if planned.identity == plans[0].base.identity and not run.partial:
                reference = rows[-1]
        if unfinished:
            commands.append(experiment.command(unfinished, request.runs.results))
    if not rows:
        raise UserError(
            f"{request.runs.results}: none of the {len(missing)} runs of this table is there; "
            f"make them with: {' && '.join(commands)}"
        )
    return Found(Rows(rows, reference), missing, commands)


def swept(headers: Mapping[str, str]) -> Names:
    """Label a run by its values of what is swept, under these headers, or else by its method."""

    def names(run: PlannedRun) -> dict[str, str]:
        values = {headers.get(key) or _header(key): value for key, value in run.values.items()}
        return values or {"method": run.method}

    return names


def _header(key: str) -> str:
    """The last part of a key, or all of it where a column of ``Rows.frame`` is called so."""
    last = key.split(".")[-1]
    return key if last in COLUMNS else last


def write(
    request: Request,
    found: Found,
    title: str,
    figure: Figure,
    table: pd.DataFrame,
    best: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write table and figure of found runs; print the table, the paths and what is missing.

    The rows' numbers go into the CSV file. The dataset is added to the title; ``best`` is that of
    ``write_table``; ``notes`` come before those of the rows.
    """
    title = f"{title}, {found.rows.rows[0].run.plan['dataset']}"
    notes = [*notes, *found.rows.notes(), *found.notes()]
    paths = write_table(request.stem, title, found.rows.frame, table, notes, best)
    paths += write_figures(request.stem, figure)
    display.table(title, table, [*notes, *map(str, paths)])
    say_what_is_missing(found.commands)


def write_rows(request: Request, found: Found, title: str, figure: Figure) -> None:
    """``write`` with a row for each run; what all rows have in common goes into a note."""
    table = presented(found.rows.frame)
    constant = [name for name in ("protocol", "covered") if table[name].nunique() == 1]
    shared = ", ".join(str(table[name].iloc[0]) for name in constant)
    table = table.drop(columns=constant)
    notes = [f"All rows: {shared}."] if shared else []
    write(request, found, title, figure, table, best_cells(found.rows, table), notes)


def say_what_is_missing(commands: Sequence[str]) -> None:
    """Print the commands that make the runs that are missing, partial or of earlier code."""
    if commands:
        display.console.print("Missing, partial or earlier runs; these commands make them:")
        for command in commands:
            display.console.print(f"  {command}")


def presented(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame of ``Rows`` as printed: one column for the interval, none for tests without any."""
    table = frame.drop(columns=["variant", "low", "high"])
    interval = [
        "–" if pd.isna(low) else f"{low:.1f} – {high:.1f}"
        for low, high in zip(frame["low"], frame["high"], strict=True)
    ]
    table.insert(list(table).index("median"), "95 % interval", interval)
    tested = frame["p"].notna().any()
    table = table if tested else table.drop(columns=["difference", "p"])
    return table.rename(columns={"difference": PAIRED})


def best_cells(rows: Rows, table: pd.DataFrame) -> pd.DataFrame:
    """The highest Dice of each column, where several runs are complete."""
    best = pd.DataFrame(False, table.index, table.columns)
    complete = [not row.run.partial for row in rows.rows]
    if sum(complete) > 1:
        for column in rows.rows[0].dice.index:
            dice = table[column].where(complete)
            best[column] = dice.eq(dice.max())
    return best


def write_table(
    stem: Path,
    title: str,
    numbers: pd.DataFrame,
    table: pd.DataFrame,
    notes: list[str],
    best: pd.DataFrame | None = None,
) -> list[Path]:
    """Write ``<stem>.csv``, ``.md`` and ``.tex``; returns their paths.

    ``numbers`` go into the CSV file, ``table`` into the other two, with the cells of ``best``
    (bool) in bold. In LaTeX the stem's name is the label; ``notes`` are sentences below the table.
    """
    text = shown(table)
    bold = pd.DataFrame(False, text.index, text.columns) if best is None else best
    files = {
        "csv": numbers.to_csv(index=False),
        "md": markdown(title, text.mask(bold, "**" + text + "**"), notes),
        "tex": latex(title, stem.name, text, notes, bold),
    }
    paths = []
    for suffix, content in files.items():
        paths.append(stem.with_name(f"{stem.name}.{suffix}"))
        write_atomic(paths[-1], content.encode())
    return paths


def write_figures(stem: Path, figure: Figure) -> list[Path]:
    """Write ``<stem>.png`` and ``<stem>.pdf``; returns their paths."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf")]
    with rc_context({"pdf.fonttype": 42}):  # text that stays text, as journals ask for
        for path in paths:
            write_figure(path, figure, DPI)
    return paths
