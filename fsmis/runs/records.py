"""The folder of a run: what was planned, what is done, and the scores, safe against kill -9.

One JSON file for each cell (fold and query scan), renamed into place when complete, is the truth;
``scores.csv`` is rebuilt from these files. A cell is *done* with its rows, *failed* with a reason,
*interrupted*, *running* by a process (perhaps killed since) or *missing*; only done cells are used
again. A cell whose file is not credible (see ``cell_record``) counts as missing: a run sets that
file aside and computes the cell again.
"""

import json
import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd

from fsmis.errors import UserError
from fsmis.files import LONGEST, author, require_name, walked, write_atomic
from fsmis.runs.cell_record import CHECKSUM, LATER, ROW, TEXT, record_problem, sealed, value_problem

COLUMNS = list(ROW)
PLAN = [
    "dataset",
    "method",
    "variant",
    "protocol",
    "organs",
    "choices",
    "identity",
    "oracle",
    "cells",
]
# Columns that may look like numbers, such as ids of scans.
NAMES = dict.fromkeys([name for name in ROW if ROW[name] is TEXT], str)


@dataclass(frozen=True)
class Cell:
    """The unit of work: one query scan of one fold."""

    fold: int
    support_scan: str
    query_scan: str

    def __post_init__(self) -> None:
        for scan_id in (self.support_scan, self.query_scan):
            require_name("scan", scan_id)

    @property
    def name(self) -> str:
        """Name of its files, e.g. ``fold3_scan36``."""
        return f"fold{self.fold}_scan{self.query_scan}"


class RunFolder:
    """Files of one variant of one method on one dataset; several processes may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def below(cls, folder: Path) -> list["RunFolder"]:
        """Every run below a folder, in folders that are links too, sorted by path."""
        found = [path for path, names in walked(folder) if "plan.json" in names]
        return [cls(path) for path in sorted(found)]

    def write(self, name: str, text: str) -> Path:
        """Write one of the run's files, whole or not at all; returns its path."""
        path = self.path / name
        write_atomic(path, text.encode())
        return path

    def write_json(self, name: str, value: dict[str, Any]) -> Path:
        return self.write(name, json.dumps(value, indent=1, allow_nan=False))

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Write ``plan.json``: ``cells`` of all folds, and the names that tables use."""
        self.write_json("plan.json", {**plan, "cells": [asdict(cell) for cell in plan["cells"]]})

    def plan(self) -> dict[str, Any]:
        """What ``write_plan`` wrote; UserError where it is missing, damaged or incomplete."""
        path = self.path / "plan.json"
        plan = read_json(path) or {}
        try:
            cells = [Cell(**cell) for cell in plan["cells"]]
            return {key: plan[key] for key in PLAN} | {"cells": cells}
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: damaged or written by another version; run its command again, or move "
                "the folder away"
            ) from error

    def finish(self, cell: Cell, rows: list[dict[str, Any]], **notes: Any) -> None:
        """Record a cell as done: ``rows`` hold ``COLUMNS``, ``notes`` anything else worth keeping.

        Raises ValueError where the rows are not scores.
        """
        rows = [{column: _finite(row[column]) for column in COLUMNS} for row in rows]
        record = {"state": "done", "rows": rows, **notes}
        problem = record_problem({**asdict(cell), **record})
        if problem is not None:  # it would be computed again and again
            raise ValueError(problem)
        self._write(cell, record)

    def fail(self, cell: Cell, state: str, reason: str) -> None:
        """Record a cell as ``failed`` or ``interrupted``, unless it is done: before, or by another
        process."""
        if self.read(cell)["state"] != "done":
            self._write(cell, {"state": state, "reason": reason})

    def begin(self, cell: Cell, since: str) -> Path:
        """Record a cell as ``running`` here, unless it is done: that lasts until it is done again.
        Returns the file, to be kept ``beating``."""
        if self.read(cell)["state"] == "done":
            return self.cell_file(cell)
        return self._write(cell, {"state": "running", "since": since, **author()})

    def forget(self, cell: Cell) -> None:
        """Make a cell missing that is not done."""
        if self.read(cell)["state"] != "done":
            self.cell_file(cell).unlink(missing_ok=True)

    def cell_file(self, cell: Cell) -> Path:
        return self.path / f"cells/{cell.name}.json"

    def read(self, cell: Cell) -> dict[str, Any]:
        """State of a cell, with what ``finish``, ``fail`` or ``begin`` noted."""
        record, problem = self._look(cell)
        return record if problem is None else {"state": "missing"}

    def problem(self, cell: Cell) -> str | None:
        """Why the file of a cell is not credible, in one line; None where it is, or there is none.

        Files without a checksum, from earlier versions, are accepted here.
        """
        _, problem = self._look(cell)
        return None if problem is None else f"{self.cell_file(cell)}: {problem}"

    def set_aside(self, cells: list[Cell]) -> list[str]:
        """Rename files that are not credible, for recomputation; returns a line for each.

        They stay beside the others, as ``fold3_scan36.json.damaged-1``. Files without a checksum
        are among them: they are readable, but their versions did not know this one's variants.
        """
        lines = []
        for cell in cells:
            path = self.cell_file(cell)
            record, problem = self._look(cell)
            if problem is None and record["state"] != "missing" and CHECKSUM not in record:
                problem = "no checksum"
            if problem is None:
                continue
            names = (path.with_name(f"{path.name}.damaged-{number}") for number in count(1))
            aside = next(name for name in names if not os.path.lexists(name))
            with suppress(FileNotFoundError):  # set aside by another process
                path.rename(aside)
                lines.append(f"{path}: {problem}; kept as {aside.name}, computed again")
        return lines

    def states(self, cells: list[Cell], scores: pd.DataFrame) -> list[str]:
        """State of each cell; done only where ``scores`` of this folder hold its rows."""
        scored = set(zip(scores["fold"], scores["query_scan"], strict=True))
        states = []
        for cell in cells:
            record = self.read(cell)
            lost = record["state"] == "done" and record["rows"]
            unscored = "missing" if lost else record["state"]
            states.append("done" if (cell.fold, cell.query_scan) in scored else unscored)
        return states

    def done(self, cells: list[Cell]) -> list[Cell]:
        return [cell for cell in cells if self.read(cell)["state"] == "done"]

    def rebuild(self) -> pd.DataFrame:
        """Write ``scores.csv`` from all done cells and return it.

        Repeated until no cell has changed, so that the last of several writers leaves all rows.
        """
        rows = self._rows()
        while True:
            scores = pd.DataFrame(rows, columns=COLUMNS).astype(NAMES)
            self.write("scores.csv", scores.to_csv(index=False))
            before, rows = rows, self._rows()
            if rows == before:
                return scores

    def scores(self) -> pd.DataFrame:
        """Rows of ``scores.csv`` (or none), scan ids as text; UserError for bad values."""
        path = self.path / "scores.csv"
        if not path.is_file():
            return pd.DataFrame(columns=COLUMNS)
        try:
            empty = {name: [""] for name in COLUMNS if name not in NAMES}
            scores = pd.read_csv(path, dtype=NAMES, na_values=empty, keep_default_na=False)
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: not a table of scores; run the same command again") from error
        scores = scores.reindex(columns=list(dict.fromkeys([*scores, *LATER])))
        lacking = [column for column in COLUMNS if column not in scores]
        if lacking:
            raise UserError(
                f"{path}: no column {lacking[0]}; written by another version, run again"
            )
        scores = scores[[*COLUMNS, *(name for name in scores if name not in COLUMNS)]]
        for number, row in enumerate(scores.to_dict("records"), start=1):
            problem = value_problem({str(name): v for name, v in row.items() if not pd.isna(v)})
            if problem is not None:
                raise UserError(f"{path}: row {number}: {problem}; run the same command again")
        return scores

    def _rows(self) -> list[dict[str, Any]]:
        records = map(_read_cell, (self.path / "cells").glob("fold*.json"))
        rows = [row for record, problem in records if not problem for row in record.get("rows", [])]
        # ids that are numbers in their order
        return sorted(rows, key=lambda row: (row["fold"], row["query_scan"].zfill(LONGEST)))

    def _look(self, cell: Cell) -> tuple[dict[str, Any], str | None]:
        record, problem = _read_cell(self.cell_file(cell))
        if problem is None and record.get("support_scan", cell.support_scan) != cell.support_scan:
            problem = f"supported by scan {record['support_scan']}, not {cell.support_scan}"
        return record, problem

    def _write(self, cell: Cell, record: dict[str, Any]) -> Path:
        return self.write_json(f"cells/{cell.name}.json", sealed({**asdict(cell), **record}))


def require_writable(folder: str | Path) -> None:
    """Refuse (UserError) a folder in which nothing can be created, without creating anything."""
    nearest = Path(folder).expanduser().absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        problem = "is not writable" if nearest.is_dir() else "is not a folder"
        raise UserError(f"results_dir={folder}: {nearest} {problem}; choose another results_dir")


def read_json(path: Path) -> dict[str, Any] | None:
    """An object from a JSON file; None where it is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read_cell(path: Path) -> tuple[dict[str, Any], str | None]:
    """The record of a cell (``missing`` without one), and why it is not credible."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {"state": "missing"}, None
    except (OSError, ValueError, RecursionError):
        return {}, "no whole JSON"
    problem = record_problem(record) if isinstance(record, dict) else "no JSON object"
    if problem is None and path.stem != f"fold{record['fold']}_scan{record['query_scan']}":
        problem = f"of scan {record['query_scan']} of fold {record['fold']}"
    return record, problem


def _finite(value: Any) -> Any:
    """Strict JSON has no NaN: an undefined distance is null there and an empty cell in CSV."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
