"""What a run shows on the terminal: progress with the current mean, then its table."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fsmis.cli import console, errors
from fsmis.reporting.tables import POOLED, shown, summarise
from fsmis.runs.records import Cell, RunFolder

COLUMNS = {"dice": "Dice %", "sd": "sd", "iou": "IoU %", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm"}
COLUMNS |= {
    POOLED: "pooled\nDice %",
    "sensitivity": "slices\nsens. %",
    "specificity": "slices\nspec. %",
    "fp_ml": "false\nml",
    "to paper": "to\npaper",
    "to main": "to\nmain",
    "paired difference": "paired\ndifference",
    "p Holm": "p\nHolm",
    "95 % interval": "95 %\ninterval",
}


@contextmanager
def progress(
    folder: RunFolder, requested: list[Cell], pending: list[Cell], organs: list[str]
) -> Iterator[Callable[[Cell, pd.DataFrame], None]]:
    """A bar of scans with the current mean Dice; where nobody watches, a line for each scan.

    Yields:
        To be called after each cell, with all scores so far.
    """
    total, done = len(requested), len(requested) - len(pending)
    if done:
        console.print(f"{done}/{total} scans were done before, {folder.path}")
    columns = (TextColumn("scans"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, TextColumn("{task.description}"), console=console)
    task = bar.add_task("", total=total, completed=done)

    def advance(cell: Cell, scores: pd.DataFrame) -> None:
        nonlocal done
        done += 1
        record = folder.read(cell)
        mean = summarise(scores, organs)["dice"].iloc[-1]
        so_far = f"mean Dice {mean:.2f}" if pd.notna(mean) else "no score yet"
        bar.update(task, advance=1, description=so_far)
        if record["state"] == "failed":
            errors.print(f"scan {cell.query_scan} of fold {cell.fold} failed: {record['reason']}")
        if not console.is_terminal:
            seen = f"scan {cell.query_scan} of fold {cell.fold}: {record['state']}"
            console.print(f"{done}/{total} {seen}, {so_far}")

    if console.is_terminal and pending:
        with bar:
            yield advance
    else:
        yield advance


def table(title: str, frame: pd.DataFrame, notes: list[str], bold: Sequence[int] = ()) -> None:
    """Print a table with its notes below; rows at the positions ``bold`` stand out."""
    text = shown(frame)
    grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in text.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[column])
        justify: JustifyMethod = "right" if numeric else "left"
        # of a terminal too narrow, text is broken and never a number
        width = text[column].str.len().max() if numeric and len(text) else None
        name = COLUMNS.get(column, column)
        grid.add_column(name, justify=justify, overflow="fold", min_width=width)
    for position, (_, row) in enumerate(text.iterrows()):
        emphasised = position in bold or row.iloc[0] == "mean"
        grid.add_row(*row, style="bold" if emphasised else None)
    console.print(grid)
    for note in notes:
        console.print(note)
