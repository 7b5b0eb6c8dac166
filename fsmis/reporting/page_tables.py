"""The sortable tables of the page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from fsmis.reporting.comparison import Tested
from fsmis.reporting.published import MARKS, NO_TEST, PUBLISHED, lay_out, read_published, select
from fsmis.reporting.runs import StoredRun, organs_of, setting_text
from fsmis.reporting.statistics import by_scan, describe
from fsmis.reporting.tables import (
    MEAN,
    MILLIMETRES,
    PAIRED,
    PERCENT,
    POOLED,
    is_partial,
    shown,
    summarise,
)

MEASURES = {"dice": "Dice %", "iou": "IoU %", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm"}
P = "p Holm"
NO_DISTANCE = "no distance"
NO_DISTANCE_NOTE = (
    f"{NO_DISTANCE}: empty answers, by scan and organ, which HD95 and ASSD leave out; where a run "
    "has any, none is marked as the best."
)
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
    """The runs of each dataset; the best ones that are not partial stand out: of an organ among the
    runs that have it, of the mean among those of the same organs.

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
        notes = [*tested.notes.get(str(dataset), [])]
        if any(column.heading == NO_DISTANCE for column in headings):
            notes.append(NO_DISTANCE_NOTE)
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
            organs = organs_of(runs[index] for index in rows.index)
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
    """Each organ and their mean, the distances that are missing, interval and deviation of the
    mean, difference and its p."""
    shown_runs = [runs[index] for index in rows.index]
    tables = [summarise(run.scores, run.plan["organs"]).set_index("organ") for run in shown_runs]
    spread = pd.DataFrame([describe(by_scan(run.scores, measure)) for run in shown_runs])
    numbers = pd.DataFrame([table[measure] for table in tables], rows.index)
    empty = pd.DataFrame([table["empty"] for table in tables], rows.index)
    decimals = 2 if measure in PERCENT else 1
    complete = ~rows["covered"].map(is_partial)
    every = pd.Series("", rows.index)
    same_organs = pd.Series([str(sorted(run.plan["organs"])) for run in shown_runs], rows.index)
    columns = []
    for name in [*organs_of(shown_runs), MEAN]:
        alike = same_organs if name == MEAN else every
        best = _best(numbers[name].where(complete), alike, highest=measure in PERCENT)
        if measure in MILLIMETRES:  # an empty answer is left out, and would win by it
            best &= empty[name].where(complete).groupby(alike).transform("sum") == 0
        pairs = zip(numbers[name], best, strict=True)
        entries = [_number(value, decimals, best=stands_out) for value, stands_out in pairs]
        columns.append((Column(str(name), "number", measure), entries))
    if measure in MILLIMETRES and empty[MEAN].any():
        missing = [_number(value, 0) for value in empty[MEAN]]
        columns.append((Column(NO_DISTANCE, "number", measure), missing))
    ends = zip(spread["low"], spread["high"], strict=True)
    interval = [
        Entry("–", None) if pd.isna(low) else Entry(f"{low:.1f} – {high:.1f}", low)
        for low, high in ends
    ]
    columns.append((Column(INTERVAL, "number", measure), interval))
    deviations = [_number(value, decimals) for value in spread["sd"]]
    columns.append((Column("sd", "number", measure), deviations))
    if measure == "dice":
        together = [_number(value, decimals) for value in rows[POOLED]]
        columns.append((Column(POOLED, "number", measure), together))
    found = tested.by_measure[measure].reindex(rows.index)
    if found["p_holm"].notna().any():
        signed = [_number(value, decimals, sign="+") for value in found["difference"]]
        columns.append((Column(PAIRED, "number", measure), signed))
        columns.append((Column(P, "number", measure), _text(P, found["p_holm"])[1]))
    return columns


def _best(values: pd.Series, alike: pd.Series, highest: bool) -> pd.Series:
    """Which values are the best of several, each only among those with the same of ``alike``."""
    groups = values.groupby(alike)
    several = groups.transform("count") > 1
    return several & (values == groups.transform("max" if highest else "min"))


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
