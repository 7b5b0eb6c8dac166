"""Table and figure: how much the protocol alone moves each method.

    python -m experiments.ablation_protocol results/runs [--dataset chaos_mri] [--out DIR]
        [key=value ...]

Rows are protocols, columns methods; the last row is the distance between a method's best and worst
protocol.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from experiments.comparison import Comparison
from experiments.draw_comparison import groups
from experiments.tabulate import find, requested, swept, write
from fsmis.cli import command_line
from fsmis.reporting.tables import MEAN

PROTOCOL = ["folds", "labelled slices", "scored slices"]
HEADERS = dict(
    zip(["protocol", "protocol.n_parts", "protocol.query_slices"], PROTOCOL, strict=True)
)
NOTE = "*: partial. Range: highest less lowest mean of the complete runs of a method."


def methods_by_protocol(comparison: Comparison) -> pd.DataFrame:
    """Mean Dice as text, a row for each protocol and their range last, a column for each method."""
    frame = comparison.frame.assign(partial=[run.run.partial for run in comparison.runs])
    star = frame["partial"].map({True: "*", False: ""})
    frame["text"] = frame[MEAN].map("{:.2f}".format) + star
    methods = list(dict.fromkeys(frame["method"]))
    table = frame.pivot_table("text", PROTOCOL, "method", aggfunc="first", sort=False)
    complete = frame[~frame["partial"]].groupby("method")[MEAN].agg(["min", "max", "count"])
    several = complete[complete["count"] > 1]
    spread = (several["max"] - several["min"]).map("{:.2f}".format)
    table.loc[("range", "", ""), :] = spread
    return table[methods].fillna("–").rename_axis(columns=None).reset_index()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``ablation_protocol_<dataset>`` from finished runs."""
    with command_line():
        request = requested("ablation_protocol", __doc__, arguments)
        found = find(request, swept(HEADERS))
        # other support scans, other slices: a difference is the protocol's, not a method's to test
        comparison = Comparison(found.comparison.runs, reference=None)
        figure = groups(comparison, "protocol", "method")
        table = methods_by_protocol(comparison)
        title = "How much the protocol alone moves each method: mean Dice"
        write(request, replace(found, comparison=comparison), title, figure, table, notes=[NOTE])


if __name__ == "__main__":
    main()
