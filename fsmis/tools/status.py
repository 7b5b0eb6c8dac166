"""How far the runs below a folder are: ``python -m fsmis status results/runs``.

Reads what the runs have recorded, on this machine and on others that share the folder, and writes
nothing. A job that has not begun has left no folder yet: ``fsmis.tools.plan`` counts those.

Exit code 0: every scan is done; 1: some failed or were stopped, the same command computes them
again; 3: none of these, but some are running or missing; 2: there is no run, or a damaged one.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from fsmis.cli import SOME_FAILED, command_line, console
from fsmis.errors import UserError
from fsmis.files import lost
from fsmis.runs.records import Cell, RunFolder

STATES = ("done", "running", "failed", "stopped", "missing")
UNFINISHED = 3  # exit code


def state_of(folder: RunFolder, cell: Cell) -> tuple[str, str]:
    """State of a cell now, and who computes it or what ended it.

    A cell recorded as running is ``stopped`` where its process is lost (see ``fsmis.files``), like
    an interrupted one.
    """
    record = folder.read(cell)
    state = record["state"]
    if state == "running":
        by = f"process {record['pid']} on {record['host']}, since {record['since']}"
        reason = lost(folder.cell_file(cell), record)
        return ("running", by) if reason is None else ("stopped", f"{reason}; {by}")
    if state == "interrupted":
        return "stopped", f"interrupted by {record['reason']}"
    return state, record.get("reason") or folder.problem(cell) or ""


def show(root: Path, folds: list[int] | None) -> int:
    """Print a row for each run below a folder, then each scan that is under way or in trouble.

    ``folds`` None stands for all. Returns the exit code; UserError where there is no run or a
    damaged one.
    """
    runs = RunFolder.below(root)
    if not runs:
        raise UserError(f"{root}: no run (plan.json) in it; give a results_dir of fsmis run")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # a name fits into 80 columns
    table.add_column("run", overflow="fold")
    for column in STATES:
        table.add_column(column, justify="right", no_wrap=True)
    total: Counter[str] = Counter()
    notes = []
    for run in runs:
        name = str(run.path.relative_to(root))
        planned = [cell for cell in run.plan()["cells"] if folds is None or cell.fold in folds]
        states = {cell: state_of(run, cell) for cell in planned}
        counts = Counter(state for state, _ in states.values())
        total += counts
        table.add_row(name, *_shown(counts))
        notes += [
            f"{name}, scan {cell.query_scan} of fold {cell.fold} {state}: {note}"
            for cell, (state, note) in states.items()
            if note
        ]
    if folds is not None and not total:
        raise UserError(f"--fold {' '.join(map(str, folds))}: no such fold in these runs")
    if len(runs) > 1:
        table.add_row(f"all {len(runs)} runs", *_shown(total))
    console.print(table)
    for note in notes:
        console.print(note)
    if total["failed"] or total["stopped"]:
        return SOME_FAILED
    return UNFINISHED if total["done"] < total.total() else 0


def _shown(counts: Counter[str]) -> Iterator[str]:
    yield f"{counts['done']}/{counts.total()}"
    yield from (str(counts[state]) if counts[state] else "·" for state in STATES[1:])


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m fsmis status",
        description=__doc__.split("\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="results_dir of the runs, or a part of it")
    parser.add_argument("--fold", type=int, nargs="+", help="look at these folds alone")
    options = parser.parse_args()
    with command_line():
        code = show(options.folder, options.fold)
    sys.exit(code)


if __name__ == "__main__":
    main()
