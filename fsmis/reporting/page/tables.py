"""The sortable tables of the page."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from fsmis.reporting.collection import SUMMARY, StoredRun
from fsmis.reporting.published import PUBLISHED, lay_out, read_published, select
from fsmis.reporting.tables import MEAN, shown

HEADINGS = {"low": "95\u00a0%\u00a0from", "high": "to", "variant": "run"}
LONG = 32  # characters from which a text may wrap


@dataclass(frozen=True)
class Entry:
    """A cell of a table: its text, what it is sorted by, and how it stands out."""

    text: str
    value: str | float | None
    best: bool = False
    link: str | None = None

    @property
    def partial(self) -> bool:
        """Whether it says that its row does not cover the dataset."""
        return self.text.startswith("partial")


@dataclass(frozen=True)
class Column:
    """A heading, and what is below: ``number``, ``text``, or ``long`` text, which wraps."""

    heading: str
    kind: str


@dataclass(frozen=True)
class Table:
    """A table of a dataset, and the settings that all its rows share."""

    shared: dict[str, Any]
    columns: list[Column]
    rows: list[list[Entry]]


def results(
    frame: pd.DataFrame, settings: list[str], runs: list[StoredRun], anchors: dict[Any, str]
) -> dict[str, Table]:
    """The runs of each dataset; the best ones that are not partial stand out.

    Args:
        frame: see ``collection.tabulate``.
        settings: its columns of settings.
        runs: of the table.
        anchors: where the page tells more of a run, by the index of ``frame``.
    """
    tables = {}
    for dataset, rows in frame.groupby("dataset", sort=False):
        organs = runs[rows.index[0]].plan["organs"]
        named = ["protocol", *settings]
        same = [name for name in named if rows[name].nunique(dropna=False) == 1]
        shared = {name: rows[name].iloc[0] for name in same if pd.notna(rows[name].iloc[0])}
        varied = [name for name in named if name not in same]
        dice = rows.loc[~rows["covered"].str.startswith("partial"), [*organs, MEAN]]
        best = dice.eq(dice.max()) & (len(dice) > 1)
        columns = rows[["method", *varied, *organs, *SUMMARY]]
        best = best.reindex(index=rows.index, columns=columns.columns, fill_value=False)
        tables[str(dataset)] = _table(columns, best, anchors, shared)
    return tables


def published(frame: pd.DataFrame, runs: list[StoredRun]) -> dict[str, Table]:
    """What papers print for the datasets of the page, by dataset (see ``published.select``)."""
    if not PUBLISHED.is_file():  # an installation without the repository
        return {}
    numbers = read_published()
    tables = {}
    for dataset, rows in frame.groupby("dataset", sort=False):
        printed = numbers[numbers["dataset"] == dataset]
        if len(printed):
            organs = runs[rows.index[0]].plan["organs"]
            table = select(lay_out(printed, organs), setting=None, everything=False)
            table = table.drop(columns=["note", "others"])
            nothing = pd.DataFrame(False, table.index, table.columns)
            tables[str(dataset)] = _table(table, nothing, {}, {})
    return tables


def _table(
    frame: pd.DataFrame, best: pd.DataFrame, anchors: dict[Any, str], shared: dict[str, Any]
) -> Table:
    texts = shown(frame)
    columns = [
        Column(HEADINGS.get(name, name), _kind(name, frame[name], texts[name]))
        for name in map(str, frame.columns)
    ]
    rows = []
    for row, index in enumerate(frame.index):
        entries = []
        for name in map(str, frame.columns):
            text, value = texts[name].iloc[row], frame[name].iloc[row]
            link = anchors.get(index) if name == "variant" else None
            stands_out = bool(best[name].iloc[row])
            entries.append(Entry(text, None if pd.isna(value) else value, stands_out, link))
        rows.append(entries)
    return Table(shared, columns, rows)


def _kind(name: str, values: pd.Series, texts: pd.Series) -> str:
    if name != "variant" and pd.to_numeric(values, errors="coerce").notna().any():
        return "number"
    return "long" if texts.str.len().max() >= LONG else "text"
