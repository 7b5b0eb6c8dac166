"""The table of protocols: methods as columns, and how far a protocol alone moves each."""

from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from fsmis.reporting.paper.rows import Rows
from fsmis.reporting.paper.table import Found, Request, write
from fsmis.reporting.tables import MEAN

HEADERS = {
    "protocol": "folds",
    "protocol.n_parts": "labelled slices",
    "protocol.query_slices": "scored slices",
}
NOTE = "*: partial. Range: highest less lowest mean of the complete runs of a method."


def methods_by_protocol(rows: Rows) -> pd.DataFrame:
    """Mean Dice as text, a row for each protocol and their range last, a column for each method."""
    frame = rows.frame.assign(partial=[row.run.partial for row in rows.rows])
    star = frame["partial"].map({True: "*", False: ""})
    frame["text"] = frame[MEAN].map("{:.2f}".format) + star
    methods = list(dict.fromkeys(frame["method"]))
    protocol = list(HEADERS.values())
    table = frame.pivot_table("text", protocol, "method", aggfunc="first", sort=False)
    complete = frame[~frame["partial"]].groupby("method")[MEAN].agg(["min", "max", "count"])
    several = complete[complete["count"] > 1]
    spread = (several["max"] - several["min"]).map("{:.2f}".format)
    table.loc[("range", "", ""), :] = spread
    return table[methods].fillna("–").rename_axis(columns=None).reset_index()


def write_protocols(request: Request, found: Found, title: str, figure: Figure) -> None:
    """``write`` of ``methods_by_protocol``."""
    # other support scans, other slices: a difference is the protocol's, not a method's to test
    untested = replace(found, rows=Rows(found.rows.rows, reference=None))
    write(request, untested, title, figure, methods_by_protocol(untested.rows), notes=[NOTE])
