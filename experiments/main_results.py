"""Table and figure: every method on one dataset, below the numbers that papers print.

    python -m experiments.main_results results/runs [--dataset chaos_mri] [--out DIR]
        [key=value ...]

Own rows are those of ``conf/experiment/main_results.yaml`` and, unless methods are chosen with
``method=...``, of ``conf/experiment/paper.yaml``; published ones those of Setting 1 in
``results/published.csv``.
"""

from collections.abc import Sequence

from fsmis.cli import command_line
from fsmis.reporting.paper.below_published import NOTE, below_published, published_rows
from fsmis.reporting.paper.diagrams import dots
from fsmis.reporting.paper.planned import PlannedRun
from fsmis.reporting.paper.table import find, requested, write
from fsmis.reporting.tables import MEAN

EXPERIMENTS = ["main_results", "paper"]


def names(run: PlannedRun) -> dict[str, str]:
    """The method, which the paper's setting does not sweep, and what the user sweeps."""
    own = run.values.get("method", f"{run.method}, the paper's setting")
    return {**run.values, "method": own}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``main_results_<dataset>`` from finished runs."""
    with command_line():
        request = requested("main_results", __doc__, arguments)
        chosen = any(override.startswith("method=") for override in request.overrides)
        found = find(request, names, EXPERIMENTS[:1] if chosen else EXPERIMENTS)
        plan = found.rows.rows[0].run.plan
        published = published_rows(plan["dataset"], plan["organs"])
        figure = dots(found.rows, published.set_index("method")[MEAN].dropna())
        table = below_published(found.rows, published)
        notes = [] if published.empty else [NOTE]
        write(request, found, "Main results", figure, table, notes=notes)


if __name__ == "__main__":
    main()
