"""Table and figure: every method on one dataset, below the numbers that papers print.

    python -m experiments.main_results results/runs [--dataset chaos_mri] [--out DIR]
        [key=value ...]

Own rows are those of ``conf/experiment/main_results.yaml`` and, unless methods are chosen with
``method=...``, of ``one_label.yaml`` and ``paper.yaml`` beside it and of every run of
``method=predictions``; published ones those of Setting 1 in ``results/published.csv``. Runs are
read from folders and from bundles (``python -m fsmis bundle``).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from fsmis.cli import command_line
from fsmis.methods.predictions import Predictions
from fsmis.reporting.beside import TO_PAPER, data_of, is_comparable
from fsmis.reporting.charts import dots
from fsmis.reporting.paper_rows import Experiment, PlannedRun, Row, Rows, best
from fsmis.reporting.paper_table import Found, Request, find, presented, requested, write
from fsmis.reporting.published import (
    CONFIRMED,
    MARKS,
    NO_TEST,
    PAPER,
    lay_out,
    read_published,
    select,
)
from fsmis.reporting.tables import MEAN, PAIRED, shown
from fsmis.runs.evaluation import Evaluation
from fsmis.settings import TARGET
from fsmis.source import source_hash

SETTING = "1"  # of published rows, what training-free methods are compared with
LEFT_OUT = ["protocol", "covered", "median", "patients", PAIRED]  # the CSV file has them
NOTE = (
    "Source: of a published row where it was read (results/published.csv names it), how it was "
    "checked, and what others got who ran the method again; such rows mix variants of the "
    f"protocol. Of an own row its protocol and scans. {MARKS} {TO_PAPER}: mean less that of "
    f"{PAPER}, which is taken to use one labelled slice, as the row of 1part does. {NO_TEST}"
)


def published_rows(dataset: str, organs: list[str]) -> pd.DataFrame:
    """Published rows of a dataset: ``method``, ``year``, Dice of organs and mean, ``source``."""
    published = read_published()
    rows = lay_out(published[published["dataset"] == dataset], organs)
    rows = select(rows, SETTING, everything=False)
    rows["source"] = [
        row["status"]
        + (row["mark"] if row["status"] != CONFIRMED else "")
        + "".join(f"; re-run: {numbers}" for numbers, _ in row["reruns"])
        for row in rows.to_dict("records")
    ]
    return rows[["method", "year", *organs, MEAN, "source"]].astype({MEAN: float})


def below_published(rows: Rows, published: pd.DataFrame) -> pd.DataFrame:
    """Published rows, if there are any, then own ones, as text."""
    own = presented(rows.frame)
    own["source"] = own["protocol"] + ", " + own["covered"]
    own = own[[column for column in own if column not in LEFT_OUT]]
    if published.empty:
        return own
    paper = published.loc[published["method"] == PAPER, MEAN]
    if len(paper):
        plans = [row.run.plan for row in rows.rows]
        covered = rows.frame[["covered"]].assign(
            dataset=[plan["dataset"] for plan in plans], data=[data_of(plan) for plan in plans]
        )
        published = published.assign(**{TO_PAPER: published[MEAN] - paper.iloc[0]})
        own[TO_PAPER] = (own[MEAN] - paper.iloc[0]).where(is_comparable(covered))
    table = pd.concat([shown(published), shown(own)], ignore_index=True).fillna("–")
    numbers = [column for column in own if column not in ("method", "source")]
    return table[["method", "year", *numbers, "source"]]


EXPERIMENTS = ["main_results", "one_label", "paper"]
PROTOCOL = "protocol."


def names(run: PlannedRun) -> dict[str, str]:
    """The method, which the paper's setting does not sweep, with its protocol where that is swept,
    and what the user sweeps."""
    own = run.values.get("method", f"{run.method}, the paper's setting")
    said = {key: value for key, value in run.values.items() if not key.startswith(PROTOCOL)}
    swept = [
        f"{key.removeprefix(PROTOCOL)}={value}"
        for key, value in run.values.items()
        if key.startswith(PROTOCOL)
    ]
    return {**said, "method": ", ".join([own, *swept])}


def imported(request: Request, found: Found) -> Found:
    """With a row for each name and protocol of label maps that were made elsewhere, of the same
    organs and folds."""
    first, asked = found.rows.rows[0], Experiment(request.name, request.overrides).base
    groups = defaultdict(list)
    for run in request.runs.runs:
        made = run.plan["identity"]["method"].get(TARGET)
        same = all(run.plan[key] == first.run.plan[key] for key in ("dataset", "organs"))
        if made == Predictions.__name__ and same:
            groups[run.method, run.plan["protocol"]].append(run.of(asked.fold))
    others = dict.fromkeys(first.names, "")
    classes = [asked.identity[part][TARGET] for part in ("protocol", "dataset")]
    code = {name: asked.identity["code"][name] for name in (Evaluation.__name__, *classes)}
    code[Predictions.__name__] = source_hash(Predictions)
    rows = [
        Row(
            {**others, "method": f"{method}, imported"}, full, full.plan["identity"]["code"] == code
        )
        for (method, _), runs in groups.items()
        if (full := best(runs)) is not None
    ]
    return replace(found, rows=replace(found.rows, rows=[*found.rows.rows, *rows]))


def main(arguments: Sequence[str] | None = None) -> None:
    with command_line(), requested("main_results", __doc__, arguments) as request:
        chosen = any(override.startswith("method=") for override in request.overrides)
        found = find(request, names, EXPERIMENTS[:1] if chosen else EXPERIMENTS)
        found = found if chosen else imported(request, found)
        plan = found.rows.rows[0].run.plan
        published = published_rows(plan["dataset"], plan["organs"])
        figure = dots(found.rows, published.set_index("method")[MEAN].dropna())
        table = below_published(found.rows, published)
        notes = [] if published.empty else [NOTE]
        write(request, found, "Main results", figure, table, notes=notes)


if __name__ == "__main__":
    main()
