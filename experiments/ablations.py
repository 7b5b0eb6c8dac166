"""Table and figure of an ablation, from finished runs.

    python -m experiments.ablations NAME results/runs [--dataset chaos_mri] [--out DIR]
        [key=value ...]

Writes ``ablation_<NAME>_<dataset>``; ``conf/experiment/ablation_<NAME>.yaml`` plans its runs, which
are read from folders and from bundles (``python -m fsmis bundle``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from fsmis.cli import command_line
from fsmis.reporting.charts import curve, curves, dots, groups
from fsmis.reporting.paper_rows import PlannedRun, Rows
from fsmis.reporting.paper_table import (
    Found,
    Names,
    Request,
    find,
    requested,
    swept,
    write,
    write_rows,
)
from fsmis.reporting.tables import MEAN

HEADERS = {
    "protocol": "folds",
    "protocol.n_parts": "labelled slices",
    "protocol.query_slices": "scored slices",
}
RANGE_NOTE = "*: partial. Range: highest less lowest mean of the complete runs of a method."


def methods_by_protocol(rows: Rows) -> pd.DataFrame:
    """Mean Dice as text, a row for each protocol, and what else is swept, and their range last, a
    column for each method."""
    frame = rows.frame.assign(partial=[row.run.partial for row in rows.rows])
    star = frame["partial"].map({True: "*", False: ""})
    frame["text"] = frame[MEAN].map("{:.2f}".format) + star
    methods = list(dict.fromkeys(frame["method"]))
    swept = [name for name in rows.rows[0].names if name not in (*HEADERS.values(), "method")]
    protocol = [*HEADERS.values(), *swept]
    table = frame.pivot_table("text", protocol, "method", aggfunc="first", sort=False)
    complete = frame[~frame["partial"]].groupby("method")[MEAN].agg(["min", "max", "count"])
    several = complete[complete["count"] > 1]
    spread = (several["max"] - several["min"]).map("{:.2f}".format)
    table.loc[("range", *[""] * (len(protocol) - 1)), :] = spread
    return table[methods].fillna("–").rename_axis(columns=None).reset_index()


def write_protocols(request: Request, found: Found, title: str, figure: Figure) -> None:
    # other support scans, other slices: a difference is the protocol's, not a method's to test
    untested = replace(found, rows=Rows(found.rows.rows, reference=None))
    write(request, untested, title, figure, methods_by_protocol(untested.rows), notes=[RANGE_NOTE])


VERSIONS = {"sam2": "SAM2", "sam2.1": "SAM2.1"}
OWN = "sam2_mini"  # SAM2's architecture, trained by this project


def version_and_size(run: PlannedRun) -> dict[str, str]:
    """Version and size of a run's segmenter, from the name of its configuration; of one that is
    not SAM2's, its name."""
    segmenter = run.values["segmenter"]
    version, _, size = segmenter.partition("_")
    if segmenter == OWN:
        return {"version": "ours", "size": size}
    if version not in VERSIONS:
        return {"version": segmenter, "size": "–"}
    return {"version": VERSIONS[version], "size": size}


@dataclass(frozen=True)
class Ablation:
    """A table and its figure.

    Attributes:
        headers: of the columns of what varies; by default the last part of its key.
        names: labels of a row by column; None: the values of what varies.
        write: the table: a row for each run, or another layout.
    """

    title: str
    draw: Callable[[Rows], Figure] = dots
    headers: Mapping[str, str] = field(default_factory=dict)
    names: Names | None = None
    write: Callable = write_rows


ABLATIONS = {
    # the paper's N_T: 0, 2, 4 there, and more here
    "augmentation_count": Ablation(
        "Ablation of the number of copies",
        partial(curve, label="$N_T$, augmented copies for each query slice"),
        {"support_set.per_query_slice": "N_T"},
    ),
    "augmentation_kind": Ablation(
        "Ablation of the kind of augmentation", headers={"support_set.kind": "augmentation"}
    ),
    # LPIPS, SSIM and PSNR as in the paper; correlation, the segmenter's features; two controls
    "matcher": Ablation("Ablation of the matcher"),
    # a matcher that chooses well gains from more copies; ``random`` says what they bring without
    "count_and_matcher": Ablation(
        "Ablation of the copies and the matcher",
        partial(curves, along="copies", group="matcher", label="copies of each support slice"),
        {"support_set.count": "copies"},
    ),
    # ``none`` is one matched copy and one pass, as in the paper
    "test_time": Ablation(
        "Ablation of what happens at test time", headers={"test_time": "at test time"}
    ),
    "model_size": Ablation(
        "Ablation of model size and version",
        partial(groups, along="size", group="version"),
        names=version_and_size,
    ),
    "protocol": Ablation(
        "How much the protocol alone moves each method: mean Dice",
        partial(groups, along="protocol", group="method"),
        HEADERS,
        write=write_protocols,
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    tables = {name: f"ablation_{name}" for name in ABLATIONS}
    with command_line(), requested("ablations", __doc__, arguments, tables) as request:
        ablation = ABLATIONS[request.name.removeprefix("ablation_")]
        found = find(request, ablation.names or swept(ablation.headers))
        ablation.write(request, found, ablation.title, ablation.draw(found.rows))


if __name__ == "__main__":
    main()
