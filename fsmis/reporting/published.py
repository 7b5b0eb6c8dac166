"""Numbers that papers print: the rows of ``results/published.csv``, and which of them to show.

None of the rows that come with the project was read in its own paper; ``status`` says where it was
read. ``results/published.md`` tells how to add or confirm a row.
"""

import csv
from functools import cache
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from fsmis.cli import CONF_DIR
from fsmis.errors import UserError
from fsmis.reporting.tables import MEAN

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "published.csv"
COLUMNS = ["method", "year", "dataset", "setting", "organ", "dice", "source", "status", "note"]
CELL = ["method", "dataset", "setting", "organ", "source"]  # at most one number for each
PAPER = "Zu et al. 2025 (SAM2-tiny)"  # the paper that this project reproduces

# Where a row was read, the most trusted first.
STATUSES = {
    "paper": "read in the paper itself",
    "readme": "read in the README of its authors or of a peer",
    "digest": "read in a digest of the paper",
    "survey": "read in a survey",
    "ocr": "read in a table that went through OCR",
    "rerun": "run again by the authors of another paper",
}
CONFIRMED = "paper"
INFERRED = " (inferred)"
SETTINGS = ["1", "2", f"2{INFERRED}", "not stated"]
FLAGS = ("mean_mismatch", "WARNING")  # in the note of a row that looks mistaken


@cache
def known_organs() -> dict[str, list[str]]:
    """The organs scored in each dataset of ``conf/dataset``, by its name."""
    configs = [OmegaConf.load(path) for path in sorted((CONF_DIR / "dataset").glob("*.yaml"))]
    named = [config for config in configs if not OmegaConf.is_missing(config, "name")]
    return {config.name: list(config.organs) for config in named}


def read_published(path: Path = PUBLISHED) -> pd.DataFrame:
    """Read and check a table of published numbers.

    Returns:
        ``COLUMNS``, one row for each number: ``year`` int; ``dice`` float, in percent; the others
        text: ``dataset`` a name in ``conf/dataset``, ``organ`` one of its organs or ``mean``,
        ``setting`` one of ``SETTINGS``, ``status`` of ``STATUSES``, ``note`` maybe empty.

    Raises:
        UserError: the file cannot be read, a value is none of these, or a source's number stands
            there twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            numbered = [(reader.line_num, row) for row in reader]
            found = list(reader.fieldnames or [])
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: not a readable CSV file ({reason}); get the one of the repository again"
        ) from error
    if found != COLUMNS:
        raise UserError(
            f"{path}, line 1: the columns are {', '.join(found) or 'missing'}; "
            f"make them {', '.join(COLUMNS)}"
        )
    organs = known_organs()
    first: dict[tuple[str, ...], int] = {}
    rows = []
    for line, row in numbered:
        problem = _problem(row, organs)
        cell = tuple(row[name] for name in CELL)
        if problem is None and first.setdefault(cell, line) != line:
            problem = f"repeats line {first[cell]} ({', '.join(cell)}); keep one of them"
        if problem is not None:
            raise UserError(f"{path}, line {line}: {problem}")
        rows.append({**row, "year": int(row["year"]), "dice": float(row["dice"])})
    return pd.DataFrame(rows, columns=COLUMNS).astype({"year": int, "dice": float})


def _problem(row: dict[str, str], organs: dict[str, list[str]]) -> str | None:
    """What is wrong with a row as it was read, and the fix."""
    if None in row or None in row.values():
        return f"has not {len(COLUMNS)} values; quote a value that holds a comma"
    for name in COLUMNS[:-1]:
        if not row[name].strip():
            return f"{name} is empty; fill it in or take the row out"
    choices = {
        "dataset": list(organs),
        "organ": [*organs.get(row["dataset"], []), MEAN],
        "setting": SETTINGS,
        "status": list(STATUSES),
    }
    for name, allowed in choices.items():
        if row[name] not in allowed:
            return f"{name}={row[name]}: write one of {', '.join(allowed)}"
    if not row["year"].isdecimal():
        return f"year={row['year']}: write a whole number"
    try:
        in_percent = 0 <= float(row["dice"]) <= 100
    except ValueError:
        in_percent = False
    return None if in_percent else f"dice={row['dice']}: write a number of percent, 0 to 100"


def lay_out(published: pd.DataFrame, organs: list[str]) -> pd.DataFrame:
    """Published numbers as a table: a row for each method, setting and source.

    Args:
        published: rows of one dataset.
        organs: its organs, in the order to show.

    Returns:
        Columns ``method``, ``year``, ``setting``; Dice in percent of each organ and the printed
        ``mean``, NaN where there is none; ``status``, ``source``, ``note``.
    """
    row = ["method", "year", "setting", "status", "source"]
    notes = published.groupby(row, sort=False)["note"].agg(
        lambda notes: "; ".join(dict.fromkeys(note for note in notes if note))
    )
    dice = published.set_index([*row, "organ"])["dice"].unstack("organ")
    table = dice.reindex(columns=[*organs, MEAN]).join(notes).reset_index()
    return table[["method", "year", "setting", *organs, MEAN, "status", "source", "note"]]


def select(table: pd.DataFrame, setting: str | None, everything: bool) -> pd.DataFrame:
    """The rows of ``lay_out`` to show, ordered by setting, year and mean, the paper's own last.

    Args:
        table: from ``lay_out``.
        setting: ``1`` or ``2`` (inferred ones too), None for all. Rows that state none stay.
        everything: every row; otherwise one for each method and setting, that of the most trusted
            status and then with the most organs, and none that its note flags as mistaken.

    Returns:
        The rows with a column ``others`` more: for each row left out that prints other numbers,
        these as ``mean 74.02``, and their source.
    """
    stated = table["setting"].str.removesuffix(INFERRED)
    table = table.assign(
        stated=stated,
        trust=table["status"].map(list(STATUSES).index),
        blank=table.isna().sum(axis="columns"),
        paper=table["method"].eq(PAPER),
        others=pd.Series([[] for _ in range(len(table))], table.index, dtype=object),
    )
    if setting is not None:
        table = table[stated.isin([setting, "not stated"])]
    if not everything:
        table = table[~table["note"].str.contains("|".join(FLAGS))]
        table = table.sort_values(["trust", "setting", "blank"], kind="stable")
        kept = []
        for _, same in table.groupby(["method", "stated"], sort=False):
            shown, *left_out = (row for _, row in same.iterrows())
            conflicts = [(_conflict(shown, row), row["source"]) for row in left_out]
            kept.append({**shown, "others": [found for found in conflicts if found[0]]})
        table = pd.DataFrame(kept, columns=table.columns)
    table = table.sort_values(["paper", "stated", "year", MEAN, "method", "trust"])
    return table.drop(columns=["stated", "trust", "blank", "paper"]).reset_index(drop=True)


def _conflict(shown: pd.Series, other: pd.Series) -> str:
    """Numbers of another source that differ from those shown: the mean, or else the organs."""
    numbers = {str(name): value for name, value in shown.items() if isinstance(value, float)}
    # a number that one of them does not print is no conflict: NaN differs from nothing here
    differing = [name for name, value in numbers.items() if abs(value - other[name]) > 0]
    if MEAN in differing:
        differing = [MEAN]
    return ", ".join(f"{name} {other[name]:.2f}" for name in differing)
