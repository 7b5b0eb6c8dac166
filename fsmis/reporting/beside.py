"""Published rows and own runs of a dataset in one table, each with its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from omegaconf import ListConfig, OmegaConf

from fsmis.cli import CONF_DIR
from fsmis.reporting.published import (
    CONFIRMED,
    MARKS,
    NO_TEST,
    PAPER,
    PUBLISHED,
    RERUN,
    known_organs,
    lay_out,
    read_published,
    select,
)
from fsmis.reporting.runs import StoredRun, run_names
from fsmis.reporting.tables import MEAN, POOLED, POOLED_NOTE, is_partial

HERE = "here"
TO_PAPER = "to paper"
PROTOCOL = "protocol and data"
OTHERS = "other sources"
RERUNS = "run again by others"
LOOKED_UP = "looked up"  # status of a source that has no row of its own
SELECTED = "organs "  # before those of a run, where conf/dataset does not tell them


@dataclass(frozen=True)
class Beside:
    """Published rows of a dataset, the paper's own, then own runs.

    Attributes:
        title: of the table.
        table: columns ``method``; ``protocol and data``, of a published row its setting; Dice in
            percent of each organ and ``mean``; ``pooled Dice`` of own runs; ``to paper``,
            difference of the mean to the paper's, NaN where the data are others; ``source``, a
            number that ``notes`` explain, or ``here``;
            ``run again by others``, numbers of re-runs that differ; ``other sources`` that print
            other numbers; ``variant`` of an own run.
        notes: footnotes and sources.
        setting: of the published rows, None for all; rows that state none are there too.
    """

    title: str
    table: pd.DataFrame
    notes: list[str]
    setting: str | None

    @property
    def narrow(self) -> pd.DataFrame:
        """What a terminal has room for, the source and what differs in setting in the name."""
        names = []
        for row in self.table.to_dict("records"):
            ours = row["source"] == HERE
            asked = ours or row[PROTOCOL] == f"setting {self.setting}"
            words = [row["method"] if asked else f"{row['method']}, {row[PROTOCOL]}"]
            names.append(" ".join(words if ours else [*words, row["source"]]))
        kept = self.table.drop(columns=[POOLED, PROTOCOL, "source", RERUNS, OTHERS, "variant"])
        return kept.assign(method=names)

    @property
    def own(self) -> list[int]:
        """Positions of own runs."""
        return [i for i, source in enumerate(self.table["source"]) if source == HERE]


def data_of(plan: dict[str, Any]) -> str:
    """The scans of a run's folds, queries and supports, and the start of the files' SHA-256.

    Args:
        plan: ``RunFolder.plan``.

    Returns:
        Such as ``20 scans in 5 folds, 3f2a91c0``; of other organs than all of a dataset in
        ``conf/dataset``, which they are.
    """
    cells = plan["cells"]
    scans = {scan for cell in cells for scan in (cell.query_scan, cell.support_scan)}
    digest = plan["identity"].get("data", "")[:8]
    usual = set(plan["organs"]) == set(known_organs().get(plan["dataset"], []))
    organs = "" if usual else SELECTED + " ".join(plan["organs"])
    extent = _extent(len(scans), len({cell.fold for cell in cells}))
    return ", ".join(filter(None, [extent, digest, organs]))


def benchmark(dataset: str) -> str | None:
    """What ``data_of`` a run begins with on the published folds; None where none are published."""
    path = CONF_DIR / "dataset" / f"{dataset}.yaml"
    starts = OmegaConf.select(OmegaConf.load(path), "fold_starts") if path.is_file() else None
    return _extent(starts[-1], len(starts) - 1) if isinstance(starts, ListConfig) else None


def is_comparable(own: pd.DataFrame) -> pd.Series:
    """Whether each run covers all scans and organs of the benchmark.

    Args:
        own: rows of ``runs.tabulate`` with a column ``data`` (see ``data_of``).
    """
    extents = [benchmark(dataset) or "none" for dataset in own["dataset"]]
    pairs = zip(own["data"], extents, strict=True)
    on_benchmark = pd.Series(
        [data.startswith(extent) and SELECTED not in data for data, extent in pairs], own.index
    )
    return on_benchmark & ~own["covered"].map(is_partial)


def beside(
    own: pd.DataFrame,
    settings: list[str],
    published: pd.DataFrame,
    setting: str | None = "1",
    everything: bool = False,
) -> Beside | None:
    """Lay own runs of one dataset beside its published rows.

    Args:
        own: as for ``is_comparable``, all of one dataset.
        settings: its columns that tell runs apart.
        published: see ``published.read_published``.
        setting: see ``published.select``.
        everything: see ``published.select``.

    Returns:
        None where the dataset has no published row.
    """
    dataset = own["dataset"].iloc[0]
    entries = lay_out(published[published["dataset"] == dataset], known_organs().get(dataset, []))
    if entries.empty:
        return None
    shown = select(entries, setting, everything)
    sources = _numbered(shown)
    table = pd.concat([_theirs(shown, sources), _ours(own, settings)], ignore_index=True)
    dice = [name for name in entries if entries[name].dtype == float]
    reported = shown.loc[shown["method"] == PAPER, MEAN]
    comparable = pd.Series([True] * len(shown) + is_comparable(own).tolist())
    differences = table[MEAN] - (reported.iloc[0] if len(reported) else float("nan"))
    is_paper = pd.Series([*shown["method"].eq(PAPER), *[False] * len(own)])
    table[TO_PAPER] = differences.where(comparable & ~is_paper)
    last = [POOLED, TO_PAPER, "source", RERUNS, OTHERS, "variant"]
    table = table[["method", PROTOCOL, *dice, *last]].astype({POOLED: float})
    of_source = entries.groupby("source", sort=False)["status"]
    statuses = of_source.agg(lambda found: ", ".join(found.unique())).to_dict()
    notes = [
        f"{MARKS} Published rows mix variants of the protocol.",
        f"{TO_PAPER}: mean less that of {PAPER}. {NO_TEST}",
        POOLED_NOTE,
        *(
            f"{row['method']}: {said} {row[column]}."
            for row in table.to_dict("records")
            for column, said in ((RERUNS, RERUNS), (OTHERS, "other sources print"))
            if row[column]
        ),
        *(
            f"[{number}] {statuses.get(source, LOOKED_UP)}: {source}"
            for source, number in sources.items()
        ),
    ]
    if not comparable.all():
        others = f"other scans than {benchmark(dataset)}, or of other organs"
        notes.insert(2, f"{TO_PAPER} is empty for runs on {others}.")
    if len(shown) < len(entries):
        notes.append(
            f"{len(shown)} of {len(entries)} published rows: one for each method and setting, none "
            "that looks mistaken. python -m fsmis compare --setting all --all-rows shows all."
        )
    asked = "all settings" if setting is None else f"setting {setting}"
    return Beside(f"{dataset} beside published rows, {asked}", table, notes, setting)


def beside_all(
    runs: list[StoredRun], frame: pd.DataFrame, settings: list[str]
) -> dict[str, Beside]:
    """``beside`` for each dataset that has rows in the repository's table of published numbers.

    Args:
        runs: from ``runs.read_runs``.
        frame: all of ``runs.tabulate``.
        settings: the same.
    """
    if not PUBLISHED.is_file():  # an installation without the repository
        return {}
    published = read_published()
    frame = frame.assign(data=[data_of(runs[position].plan) for position in frame.index])
    found = {
        str(dataset): beside(own, settings, published)
        for dataset, own in frame.groupby("dataset", sort=False)
    }
    return {dataset: shown for dataset, shown in found.items() if shown is not None}


def _theirs(shown: pd.DataFrame, sources: dict[str, int]) -> pd.DataFrame:
    def said(column: str) -> list[str]:
        return [
            "; ".join(f"{numbers} [{sources[source]}]" for numbers, source in pairs)
            for pairs in shown[column]
        ]

    table = shown.assign(variant="", source=[f"[{sources[source]}]" for source in shown["source"]])
    table["method"] = [_name(row) for row in shown.to_dict("records")]
    table[PROTOCOL] = "setting " + shown["setting"]
    table[OTHERS], table[RERUNS] = said("others"), said("reruns")
    return table.assign(**{POOLED: float("nan")})


def _ours(own: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    table = own.assign(method=run_names(own, settings), source=HERE)
    table[PROTOCOL] = own["protocol"] + ", " + own["data"]
    table[[OTHERS, RERUNS]] = ""
    return table


def _numbered(shown: pd.DataFrame) -> dict[str, int]:
    """Number of each source, in the order in which the rows name them."""
    pairs = [*shown["reruns"].explode().dropna(), *shown["others"].explode().dropna()]
    others = [source for _, source in pairs]
    found = dict.fromkeys([*shown["source"], *others])
    return {source: number for number, source in enumerate(found, start=1)}


def _name(row: Mapping[Any, Any]) -> str:
    """Name, year, whether it is a re-run, and how its numbers were checked."""
    year = "" if str(row["year"]) in row["method"] else f" {row['year']}"
    again = " (re-run)" if row["status"] == RERUN else ""
    return row["method"] + year + again + (row["mark"] if row["status"] != CONFIRMED else "")


def _extent(scans: int, folds: int) -> str:
    return f"{scans} scans in {folds} folds"
