"""The sortable tables of the page."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from fsmis.reporting.comparison import Tested
from fsmis.reporting.published import MARKS, NO_TEST, PUBLISHED, lay_out, read_published, select
from fsmis.reporting.runs import StoredRun, setting_text
from fsmis.reporting.statistics import by_scan, describe
from fsmis.reporting.tables import MEAN, PAIRED, PERCENT, POOLED, is_partial, shown, summarise

MEASURES = {"dice": "Dice %", "iou": "IoU %", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm"}
P = "p Holm"
INTERVAL = "95\u00a0% interval"
LONG = 32  # characters from which a text may wrap anywhere
MOST_SETTINGS = 3  # with a column of their own; more share one, or the page would be too narrow


@dataclass(frozen=True)
class Entry:
    """A cell of a table: its text, what it is sorted by, and how it stands out."""

    text: str
    value: Any
    best: bool = False
    link: str | None = None

    @property
    def partial(self) -> bool:
        """Whether it says that its row does not cover the dataset."""
        return is_partial(self.text)


@dataclass(frozen=True)
class Column:
    """A heading, and what is below: ``number``, ``text``, or ``long`` text, which wraps; of which
    measure, where a reader chooses one."""

    heading: str
    kind: str
    measure: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of a dataset, the settings that all its rows share, how to read it, and the measures
    that a reader may choose, by name."""

    shared: dict[str, Any]
    columns: list[Column]
    rows: list[list[Entry]]
    notes: list[str] = field(default_factory=list)
    measures: Mapping[str, str] = field(default_factory=dict)


def results(
    frame: pd.DataFrame,
    settings: list[str],
    runs: list[StoredRun],
    anchors: dict[Any, str],
    tested: Tested,
) -> dict[str, Table]:
    """The runs of each dataset; the best ones that are not partial stand out.

    What tells whether a row counts, and where to read more of it, comes first.

    Args:
        frame: see ``runs.tabulate``.
        settings: its columns of settings.
        runs: of the table.
        anchors: where the page tells more of a run, by the index of ``frame``.
        tested: the differences of the runs to their main ones.
    """
    tables = {}
    for dataset, rows in frame.groupby("dataset", sort=False):
        named = ["protocol", *settings]
        same = [name for name in named if rows[name].nunique(dropna=False) == 1]
        shared = {name: rows[name].iloc[0] for name in same if pd.notna(rows[name].iloc[0])}
        columns: list[tuple[Column, list[Entry]]] = [
            _text("method", rows["method"]),
            _links(rows["variant"], anchors),
            (Column("covered", "text"), _text("covered", rows["covered"])[1]),
            *_settings(rows, [name for name in named if name not in same]),
        ]
        for measure in MEASURES:
            columns += _numbers(rows, runs, measure, tested)
        headings, entries = zip(*columns, strict=True)
        found = [list(row) for row in zip(*entries, strict=True)]
        notes = tested.notes.get(str(dataset), [])
        tables[str(dataset)] = Table(shared, list(headings), found, notes, MEASURES)
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
            table["run again by others"] = [
                "; ".join(numbers for numbers, _ in pairs) for pairs in table["reruns"]
            ]
            table = table.drop(columns=["note", "others", "reruns"])
            table = table.rename(columns={"mark": "checked"})
            columns = [_text(str(name), table[name]) for name in table]
            headings, entries = zip(*columns, strict=True)
            found = [list(row) for row in zip(*entries, strict=True)]
            tables[str(dataset)] = Table({}, list(headings), found, [MARKS, NO_TEST])
    return tables


def _settings(rows: pd.DataFrame, varied: list[str]) -> list[tuple[Column, list[Entry]]]:
    """What varies: a column each, or one of all where they are many."""
    if len(varied) <= MOST_SETTINGS + ("protocol" in varied):
        return [_text(name, rows[name]) for name in varied]
    settings = [name for name in varied if name != "protocol"]
    said = [", ".join(setting_text(run, settings)) for run in rows.to_dict("records")]
    several = _text("settings", pd.Series(said, rows.index))
    return [*(_text(name, rows[name]) for name in varied if name == "protocol"), several]


def _numbers(
    rows: pd.DataFrame, runs: list[StoredRun], measure: str, tested: Tested
) -> list[tuple[Column, list[Entry]]]:
    """Each organ and their mean, interval and deviation of the mean, difference and its p."""
    organs = runs[rows.index[0]].plan["organs"]
    described = {index: _described(runs[index], measure) for index in rows.index}
    numbers = pd.DataFrame.from_dict(described, orient="index").reindex(rows.index)
    decimals = 2 if measure in PERCENT else 1
    complete = ~rows["covered"].map(is_partial)
    columns = []
    for name in [*organs, MEAN]:
        values = numbers[name].where(complete)
        best = values.max() if measure in PERCENT else values.min()
        columns.append(
            (
                Column(str(name), "number", measure),
                [
                    _number(value, decimals, best=complete.sum() > 1 and counts == best)
                    for value, counts in zip(numbers[name], values, strict=True)
                ],
            )
        )
    ends = zip(numbers["low"], numbers["high"], strict=True)
    interval = [
        Entry("–", None) if pd.isna(low) else Entry(f"{low:.1f} – {high:.1f}", low)
        for low, high in ends
    ]
    columns.append((Column(INTERVAL, "number", measure), interval))
    spread = [_number(value, decimals) for value in numbers["sd"]]
    columns.append((Column("sd", "number", measure), spread))
    if measure == "dice":
        together = [_number(value, decimals) for value in rows[POOLED]]
        columns.append((Column(POOLED, "number", measure), together))
    found = tested.by_measure[measure].reindex(rows.index)
    if found["p_holm"].notna().any():
        signed = [_number(value, decimals, sign="+") for value in found["difference"]]
        columns.append((Column(PAIRED, "number", measure), signed))
        columns.append((Column(P, "number", measure), _text(P, found["p_holm"])[1]))
    return columns


def _described(run: StoredRun, measure: str) -> dict[Hashable, float]:
    """A measure of a run: of each organ, their mean, its interval and deviation."""
    means = summarise(run.scores, run.plan["organs"]).set_index("organ")[measure]
    spread = describe(by_scan(run.scores, measure))
    return means.to_dict() | {"low": spread.low, "high": spread.high, "sd": spread.sd}


def _number(value: float, decimals: int, sign: str = "", best: bool = False) -> Entry:
    if pd.isna(value):
        return Entry("–", None)
    return Entry(f"{value:{sign}.{decimals}f}", float(value), bool(best))


def _links(variants: pd.Series, anchors: dict[Any, str]) -> tuple[Column, list[Entry]]:
    return Column("run", "text"), [
        Entry(variant, variant, link=anchors[index]) for index, variant in variants.items()
    ]


def _text(name: str, values: pd.Series) -> tuple[Column, list[Entry]]:
    texts = shown(values.to_frame(name))[name]
    if pd.to_numeric(values, errors="coerce").notna().any():
        kind = "number"
    else:
        kind = "long" if texts.str.len().max() >= LONG else "text"
    return Column(name, kind), [
        Entry(text, None if pd.isna(value) else value)
        for text, value in zip(texts, values, strict=True)
    ]
