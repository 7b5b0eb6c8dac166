"""The folder of a run: what was planned, what is done, and the scores, safe against kill -9.

The truth is one JSON file for each cell (fold and query scan), renamed into place when complete;
``scores.csv`` is rebuilt from them. A cell is *done* with its rows, *failed* with a reason,
*interrupted*, *running* by a process, which may have been killed since, or *missing*; only done
ones are used again. A file that does not parse is missing.
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fsmis.errors import UserError
from fsmis.files.atomic import write_atomic
from fsmis.runs.heartbeat import author

COLUMNS = [
    *("dataset", "method", "variant", "protocol", "fold", "support_scan", "query_scan", "organ"),
    *("n_slices", "tp", "fp", "fn", "dice", "iou", "hd95_mm", "assd_mm", "seconds"),
]
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
SCAN_IDS = {"support_scan": str, "query_scan": str}  # numbers in name only


@dataclass(frozen=True)
class Cell:
    """The unit of work: one query scan of one fold."""

    fold: int
    support_scan: str
    query_scan: str

    @property
    def name(self) -> str:
        """Name of its files, e.g. ``fold3_scan36``."""
        return f"fold{self.fold}_scan{self.query_scan}"


class RunFolder:
    """Files of one variant of one method on one dataset; several processes may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> Path:
        """Write one of the run's files, whole or not at all; returns its path."""
        path = self.path / name
        write_atomic(path, text.encode())
        return path

    def write_json(self, name: str, value: dict[str, Any]) -> Path:
        """``write`` for plain data, as strict JSON."""
        return self.write(name, json.dumps(value, indent=1, allow_nan=False))

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Write ``plan.json``: ``cells`` of all folds, and what tables name (see ``run.plan``)."""
        self.write_json("plan.json", {**plan, "cells": [asdict(cell) for cell in plan["cells"]]})

    def plan(self) -> dict[str, Any]:
        """What ``write_plan`` wrote.

        Raises:
            UserError: it is missing, damaged or lacks one of ``PLAN``.
        """
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
        """Record a cell as done; ``rows`` hold ``COLUMNS``, ``notes`` what else is to be known."""
        rows = [{column: _finite(row[column]) for column in COLUMNS} for row in rows]
        self._write(cell, {"state": "done", "rows": rows, **notes})

    def fail(self, cell: Cell, state: str, reason: str) -> None:
        """Record a cell as ``failed`` or ``interrupted``, unless another process has done it."""
        if self.read(cell)["state"] != "done":
            self._write(cell, {"state": state, "reason": reason})

    def begin(self, cell: Cell, since: str) -> Path:
        """Record a cell as ``running`` here; returns the file, to be kept ``beating``."""
        return self._write(cell, {"state": "running", "since": since, **author()})

    def forget(self, cell: Cell) -> None:
        """Make a cell missing."""
        self.cell_file(cell).unlink(missing_ok=True)

    def cell_file(self, cell: Cell) -> Path:
        """The file that records a cell."""
        return self.path / f"cells/{cell.name}.json"

    def read(self, cell: Cell) -> dict[str, Any]:
        """State of a cell, with what ``finish``, ``fail`` or ``begin`` noted."""
        record = read_json(self.cell_file(cell))
        return record if record is not None and _is_valid(record) else {"state": "missing"}

    def states(self, cells: list[Cell], scores: pd.DataFrame) -> list[str]:
        """State of each cell as ``scores`` of this folder stand: done only with its rows there."""
        scored = set(zip(scores["fold"], scores["query_scan"], strict=True))
        states = []
        for cell in cells:
            record = self.read(cell)
            lost = record["state"] == "done" and record["rows"]
            unscored = "missing" if lost else record["state"]
            states.append("done" if (cell.fold, cell.query_scan) in scored else unscored)
        return states

    def done(self, cells: list[Cell]) -> list[Cell]:
        """Those of the cells that need no computing."""
        return [cell for cell in cells if self.read(cell)["state"] == "done"]

    def rebuild(self) -> pd.DataFrame:
        """Write ``scores.csv`` from all done cells and return it.

        Repeated until no cell has changed meanwhile, so that the last of several concurrent
        writers leaves all rows.
        """
        rows = self._rows()
        while True:
            scores = pd.DataFrame(rows, columns=COLUMNS).astype(SCAN_IDS)
            self.write("scores.csv", scores.to_csv(index=False))
            before, rows = rows, self._rows()
            if rows == before:
                return scores

    def scores(self) -> pd.DataFrame:
        """Rows of ``scores.csv`` (empty where there is none), scan ids as text.

        Raises:
            UserError: the file is not such a table.
        """
        path = self.path / "scores.csv"
        if not path.is_file():
            return pd.DataFrame(columns=COLUMNS)
        try:
            scores = pd.read_csv(path, dtype=SCAN_IDS)
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: not a table of scores; run the same command again") from error
        lacking = [column for column in COLUMNS if column not in scores]
        if lacking:
            raise UserError(
                f"{path}: no column {lacking[0]}; written by another version, run again"
            )
        return scores

    def _rows(self) -> list[dict[str, Any]]:
        records = (read_json(path) for path in (self.path / "cells").glob("fold*.json"))
        done = [record for record in records if record is not None and _is_valid(record)]
        rows = [row for record in done for row in record.get("rows", [])]
        return sorted(rows, key=lambda row: (row["fold"], int(row["query_scan"])))

    def _write(self, cell: Cell, record: dict[str, Any]) -> Path:
        return self.write_json(f"cells/{cell.name}.json", {**asdict(cell), **record})


def require_writable(folder: str | Path) -> None:
    """Refuse a folder in which nothing can be created; creates nothing.

    Raises:
        UserError: it, or its nearest parent that exists, is no folder or is not writable.
    """
    nearest = Path(folder).expanduser().absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        problem = "is not writable" if nearest.is_dir() else "is not a folder"
        raise UserError(f"results_dir={folder}: {nearest} {problem}; choose another results_dir")


def read_json(path: Path) -> dict[str, Any] | None:
    """An object from a JSON file; None where there is none or it is damaged."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _is_valid(record: dict[str, Any]) -> bool:
    if record.get("state") != "done":
        return record.get("state") in ("failed", "interrupted", "running")
    rows = record.get("rows")
    return isinstance(rows, list) and all(set(COLUMNS) <= set(row) for row in rows)


def _finite(value: Any) -> Any:
    """Strict JSON has no NaN: an undefined distance is null there and an empty cell in CSV."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
