"""Numbers that papers print: the rows of ``results/published.csv``, and which of them to show.

None of the rows that come with the project was read in its own paper; ``status`` says where it was
read, ``check`` whether a public source that was looked up since prints the same.
``results/published.md`` tells how to add or confirm a row.
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
REQUIRED = ["method", "year", "dataset", "setting", "organ", "dice", "source", "status"]
COLUMNS = [*REQUIRED, "note", "check", "check_dice", "check_source"]
CELL = ["method", "dataset", "setting", "organ", "source"]  # at most one number for each
PAPER = "Zu et al. 2025 (SAM2-tiny)"  # the paper that this project reproduces

# Where a row was read, the most trusted first.
STATUSES = {
    "paper": "read in the paper itself",
    "readme": "read in the README of its authors or of a peer",
    "digest": "read in a digest of the paper",
    "survey": "read in a survey",
    "ocr": "read in a table that went through OCR",
    "issue": "quoted by users in an issue of its repository",
    "rerun": "run again by others",
}
RERUN = "rerun"  # no claim of the method's own authors

# What a public source that was looked up says of a row, and how tables show it.
CHECKS = {
    "confirmed": "✓",  # prints the same
    "differs": "~",  # prints another number of a method that others ran again, as may be
    "contradicted": "≠",  # prints another number
    "": "†",  # none was found
}
MARKS = (
    "✓ found again in a public source; † not read in its own paper, and not found again; "
    "~ a re-run, of which a public source prints other numbers; ≠ contradicted by a public source."
)
NO_TEST = (
    "No test against a published row is possible: papers print means, not the scores of scans."
)
CONFIRMED = "paper"
INFERRED = " (inferred)"
SETTINGS = ["1", "2", f"2{INFERRED}", "not stated"]
FLAGS = ("mean_mismatch", "WARNING")  # in the note of a row that looks mistaken


@cache
def known_organs() -> dict[str, list[str]]:
    """The organs scored in each dataset of ``conf/dataset``, by its name."""
    configs = [OmegaConf.load(path) for path in sorted((CONF_DIR / "dataset").glob("*.yaml"))]
    whole = [c for c in configs if "name" in c and "organs" in c]  # others are to be completed
    return {config.name: list(config.organs) for config in whole}


def read_published(path: Path = PUBLISHED) -> pd.DataFrame:
    """Read and check a table of published numbers.

    Returns:
        ``COLUMNS``, one row for each number: ``year`` int; ``dice`` float, in percent; the others
        text: ``dataset`` a name in ``conf/dataset``, ``organ`` one of its organs or ``mean``,
        ``setting`` one of ``SETTINGS``, ``status`` of ``STATUSES``, ``note`` maybe empty, ``check``
        one of ``CHECKS``; ``check_dice`` float, what the ``check_source`` prints where it is
        another number, else NaN.

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
        rows.append(row | {"check_dice": row["check_dice"] or "nan"})
    numbers = {"year": int, "dice": float, "check_dice": float}
    return pd.DataFrame(rows, columns=COLUMNS).astype(numbers)


def _problem(row: dict[str, str], organs: dict[str, list[str]]) -> str | None:
    """What is wrong with a row as it was read, and the fix."""
    if None in row or None in row.values():
        return f"has not {len(COLUMNS)} values; quote a value that holds a comma"
    for name in REQUIRED:
        if not row[name].strip():
            return f"{name} is empty; fill it in or take the row out"
    choices = {
        "dataset": list(organs),
        "organ": [*organs.get(row["dataset"], []), MEAN],
        "setting": SETTINGS,
        "status": list(STATUSES),
        "check": list(CHECKS),
    }
    for name, allowed in choices.items():
        if row[name] not in allowed:
            return f"{name}={row[name]}: write one of {', '.join(filter(None, allowed))}"
    if bool(row["check"]) != bool(row["check_source"].strip()):
        return "check and check_source go together; fill both in or neither"
    if (row["check"] in ("differs", "contradicted")) != bool(row["check_dice"]):
        return "check_dice is what a source prints that differs or contradicts; give it then alone"
    if not row["year"].isdecimal():
        return f"year={row['year']}: write a whole number"
    for name in ("dice", "check_dice") if row["check_dice"] else ("dice",):
        try:
            in_percent = 0 <= float(row[name]) <= 100
        except ValueError:
            in_percent = False
        if not in_percent:
            return f"{name}={row[name]}: write a number of percent, 0 to 100"
    return None


def lay_out(published: pd.DataFrame, organs: list[str]) -> pd.DataFrame:
    """Published numbers as a table: a row for each method, setting and source.

    Args:
        published: rows of one dataset.
        organs: its organs, in the order to show.

    Returns:
        Columns ``method``, ``year``, ``setting``; Dice in percent of each organ and the printed
        ``mean``, NaN where there is none; ``status``, ``source``, ``note``; ``mark`` of
        ``CHECKS``: confirmed where all numbers are, otherwise the worst that is said of one;
        ``checked``, what other sources print instead, as pairs ``("mean 82.44", source)``.
    """
    row = ["method", "year", "setting", "status", "source"]
    groups = published.groupby(row, sort=False)
    notes = groups["note"].agg(lambda notes: "; ".join(dict.fromkeys(filter(None, notes))))
    marks = groups["check"].agg(_worst).map(CHECKS).rename("mark")
    otherwise = pd.Series(
        {key: _otherwise(rows) for key, rows in groups}, marks.index, name="checked", dtype=object
    )
    dice = published.set_index([*row, "organ"])["dice"].unstack("organ")
    dice = dice.reindex(columns=[*organs, MEAN])
    table = dice.join([notes, marks, otherwise]).reset_index()
    said = ["status", "source", "note", "mark", "checked"]
    return table[["method", "year", "setting", *organs, MEAN, *said]]


def _worst(checks: pd.Series) -> str:
    found = set(checks)
    return next((check for check in ("contradicted", "differs", "") if check in found), "confirmed")


def _otherwise(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """What the sources that were looked up print instead: the mean, or else the organs."""
    said = []
    for source, other in rows[rows["check_dice"].notna()].groupby("check_source", sort=False):
        of_mean = other[other["organ"] == MEAN]
        pairs = (of_mean if len(of_mean) else other)[["organ", "check_dice"]].to_numpy()
        said.append((", ".join(f"{organ} {dice:.2f}" for organ, dice in pairs), str(source)))
    return said


def select(table: pd.DataFrame, setting: str | None, everything: bool) -> pd.DataFrame:
    """The rows of ``lay_out`` to show, ordered by setting, year and mean, the paper's own last.

    Args:
        table: from ``lay_out``.
        setting: ``1`` or ``2`` (inferred ones too), None for all. Rows that state none stay.
        everything: every row; otherwise one for each method and setting, that of the most trusted
            status and then with the most organs, none that its note flags as mistaken, and one
            that is contradicted only where there is no other.

    Returns:
        The rows with two columns more, of pairs ``("mean 74.02", source)``: ``others``, numbers of
        the rows left out that differ, and of sources that contradict this one; ``reruns``, the same
        of what others got who ran the method again.
    """
    stated = table["setting"].str.removesuffix(INFERRED)
    table = table.assign(
        stated=stated,
        trust=table["status"].map(list(STATUSES).index),
        contradicted=table["mark"].eq(CHECKS["contradicted"]),
        blank=table[[*_numbers(table)]].isna().sum(axis="columns"),
        paper=table["method"].eq(PAPER),
        others=table["checked"],
        reruns=pd.Series([[] for _ in range(len(table))], table.index, dtype=object),
    )
    if setting is not None:
        table = table[stated.isin([setting, "not stated"])]
    if not everything:
        table = table[~table["note"].str.contains("|".join(FLAGS))]
        order = ["contradicted", "trust", "setting", "blank"]
        table = table.sort_values(order, kind="stable")
        kept = []
        for _, same in table.groupby(["method", "stated"], sort=False):
            claim, *left_out = (row for _, row in same.iterrows())
            said: dict[str, list[tuple[str, str]]] = {"others": [*claim["others"]], "reruns": []}
            for row in left_out:
                if numbers := _conflict(claim, row):
                    kind = "reruns" if row["status"] == RERUN else "others"
                    said[kind].append((numbers, row["source"]))
            kept.append({**claim, **said})
        table = pd.DataFrame(kept, columns=table.columns)
    table = table.sort_values(["paper", "stated", "year", MEAN, "method", "trust"])
    own = ["stated", "trust", "contradicted", "blank", "paper", "checked"]
    return table.drop(columns=own).reset_index(drop=True)


def _numbers(table: pd.DataFrame) -> list[str]:
    return [str(name) for name in table if pd.api.types.is_float_dtype(table[name])]


def _conflict(shown: pd.Series, other: pd.Series) -> str:
    """Numbers of another source that differ from those shown: the mean, or else the organs."""
    numbers = {str(name): value for name, value in shown.items() if isinstance(value, float)}
    # a number that one of them does not print is no conflict: NaN differs from nothing here
    differing = [name for name, value in numbers.items() if abs(value - other[name]) > 0]
    if MEAN in differing:
        differing = [MEAN]
    return ", ".join(f"{name} {other[name]:.2f}" for name in differing)
