"""Own rows of the main table below those that papers print."""

import pandas as pd

from fsmis.reporting.beside import TO_PAPER, UNCONFIRMED, data_of, is_comparable
from fsmis.reporting.paper.rows import Rows
from fsmis.reporting.paper.table import presented
from fsmis.reporting.published import CONFIRMED, PAPER, lay_out, read_published, select
from fsmis.reporting.tables import MEAN, PAIRED, shown

SETTING = "1"  # of published rows, what training-free methods are compared with
LEFT_OUT = ["protocol", "covered", "median", "patients", PAIRED]  # the CSV file has them
NOTE = (
    "Source: of a published row where it was read (results/published.csv names it; "
    f"{UNCONFIRMED}: not in its own paper; such rows mix variants of the protocol), of an own row "
    f"its protocol and scans. {TO_PAPER}: mean less that of {PAPER}."
)


def published_rows(dataset: str, organs: list[str]) -> pd.DataFrame:
    """Published rows of a dataset: ``method``, ``year``, Dice of organs and mean, ``source``."""
    published = read_published()
    rows = lay_out(published[published["dataset"] == dataset], organs)
    rows = select(rows, SETTING, everything=False)
    mark = rows["status"].map(lambda status: "" if status == CONFIRMED else UNCONFIRMED)
    rows["source"] = rows["status"] + mark
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
