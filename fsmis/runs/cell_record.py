"""What makes the record of a cell credible: its checksum, its types, its numbers."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

CHECKSUM = "checksum"
LARGEST = 2**63  # that a table holds as a whole number
ROUNDING = 1e-6  # largest difference of a stored overlap to that of its counts


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < LARGEST


def _is_count(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int) and value >= 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_size(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_distance(value: Any) -> bool:
    return value is None or _is_size(value)


Check = tuple[Callable[[Any], bool], str]  # and what it asks for

TEXT: Check = (_is_text, "a text")
COUNT: Check = (_is_count, "a whole number from 0")
SHARE: Check = (_is_share, "a number from 0 to 1")
SIZE: Check = (_is_size, "a number from 0")
DISTANCE: Check = (_is_distance, "a number from 0, or null")

# Of a row of scores, in the order of the columns of scores.csv.
ROW: dict[str, Check] = {
    **dict.fromkeys(("dataset", "method", "variant", "protocol"), TEXT),
    **{"fold": COUNT, "support_scan": TEXT, "query_scan": TEXT, "organ": TEXT},
    **dict.fromkeys(("n_slices", "tp", "fp", "fn"), COUNT),
    **dict.fromkeys(("slices_true", "slices_found", "slices_hit"), COUNT),
    "fp_ml": SIZE,
    **{"dice": SHARE, "iou": SHARE, "hd95_mm": DISTANCE, "assd_mm": DISTANCE, "seconds": SIZE},
}
LATER = {
    "slices_true",
    "slices_found",
    "slices_hit",
    "fp_ml",
}  # that earlier versions did not write
WHERE: dict[str, Check] = {"fold": COUNT, "support_scan": TEXT, "query_scan": TEXT}

# Of what a record holds beside, by its state.
STATES: dict[str, dict[str, Check]] = {
    "done": {"rows": (lambda rows: isinstance(rows, list), "a list")},
    "failed": {"reason": TEXT},
    "interrupted": {"reason": TEXT},
    "running": {"since": TEXT, "host": TEXT, "pid": COUNT},
}
# Of what ``Run.compute`` notes, where it is there.
NOTES: dict[str, Check] = {
    "skipped": (
        lambda skipped: isinstance(skipped, dict) and all(map(_is_text, skipped.values())),
        "reasons by organ",
    ),
    "code": TEXT,
    "wall_seconds": SIZE,
    "host": TEXT,
}


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, CHECKSUM: _checksum(record)}


def record_problem(record: Mapping[str, Any]) -> str | None:
    """Why a record of a cell is not credible, in a few words; None where it is.

    Records without a checksum, from earlier versions, are judged by their contents.
    """
    if CHECKSUM in record and record[CHECKSUM] != _checksum(record):
        return "its checksum is that of another content"
    state = record.get("state")
    if not isinstance(state, str) or state not in STATES:
        return f"state={state!r} is none of {', '.join(STATES)}"
    noted = {name: check for name, check in NOTES.items() if name in record}
    problem = _broken(record, WHERE | STATES[state] | noted)
    if problem is not None or state != "done":
        return problem
    rows = record["rows"]
    for row in rows:
        problem = "a row is no object" if not isinstance(row, dict) else _row_problem(row, record)
        if problem is not None:
            return problem
    if len({row["organ"] for row in rows}) < len(rows):
        return "an organ has two rows"
    return None


def value_problem(row: Mapping[str, Any]) -> str | None:
    """Which value of (part of) a row of scores.csv is impossible; None where all are possible."""
    return _broken(row, {name: ROW[name] for name in row if name in ROW})


def _row_problem(row: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    problem = _broken(row, {n: check for n, check in ROW.items() if n in row or n not in LATER})
    if problem is not None:
        return problem
    if any(row[name] != record[name] for name in WHERE):
        return "a row is of another scan"
    tp, wrong = row["tp"], row["fp"] + row["fn"]
    by_counts = {"dice": (2 * tp, 2 * tp + wrong), "iou": (tp, tp + wrong)}
    for name, (common, total) in by_counts.items():
        expected = common / total if total else 1.0
        if abs(row[name] - expected) > ROUNDING:
            return f"{name}={row[name]:g} of {row['organ']}, but its counts give {expected:g}"
    return None


def _broken(values: Mapping[str, Any], checks: Mapping[str, Check]) -> str | None:
    for name, (holds, wanted) in checks.items():
        if name not in values:
            return f"no {name}"
        if not holds(values[name]):
            return f"{name}={values[name]!r} is not {wanted}"
    return None


def _checksum(record: Mapping[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
