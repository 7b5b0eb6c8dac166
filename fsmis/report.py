"""One table and one figure of all runs below a folder: ``python -m fsmis.report DIR [--out DIR]``.

Reads score rows, plans and configurations, never a model.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fsmis import display
from fsmis.atomic import write_atomic, write_figure
from fsmis.charts import draw
from fsmis.cli import command_line
from fsmis.errors import UserError
from fsmis.records import RunFolder
from fsmis.tables import MEAN, completeness, markdown, summarise

CONVENTION = (
    "Dice in percent, over scans, then folds; mean over organs; sd over the scans' means. "
    "A row marked partial does not cover its dataset: do not compare it with the others."
)
LABELS = ["dataset", "method", "protocol"]
SUMMARY = ["mean", "sd", "scans", "covered", "variant"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``report.csv``, ``report.md`` and ``report.png``, print the table and the paths."""
    parser = argparse.ArgumentParser(prog="python -m fsmis.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of runs, such as results/runs")
    parser.add_argument("--out", type=Path, help="folder to write to (default: the same)")
    options = parser.parse_args(arguments)
    out = options.out or options.folder
    with command_line():
        frame, settings, organs = collect(options.folder)
        title = f"Runs in {options.folder}"
        figure = draw(frame, settings, organs)
        paths = [out / f"report.{suffix}" for suffix in ("csv", "md", "png")]
        write_atomic(paths[0], frame.to_csv(index=False).encode())
        write_atomic(paths[1], markdown(title, frame, [CONVENTION]).encode())
        write_figure(paths[2], figure, dpi=150)
    # a terminal is narrow: what all runs share stands in the title
    shared = [name for name in LABELS if frame[name].nunique() == 1]
    title = ", ".join([title, *(frame[name][0] for name in shared)])
    display.table(title, frame.drop(columns=shared), [CONVENTION, *map(str, paths)])


def collect(folder: Path) -> tuple[pd.DataFrame, list[str], list[str]]:
    """One row for each run below a folder.

    Returns:
        The table, the names of the settings in which runs differ, and the organs. The columns are
        ``dataset``, ``method``, ``protocol``; those settings; Dice in percent of each organ;
        ``mean`` Dice and its ``sd`` over scans (NaN for a single one); number of ``scans`` that are
        scored; ``covered`` as ``tables.completeness`` says it; ``variant``.

    Raises:
        UserError: there is no run, or one is damaged.
    """
    runs = [RunFolder(path.parent) for path in sorted(folder.rglob("plan.json"))]
    plans = [(run, run.plan()) for run in runs]
    if not plans:
        raise UserError(f"{folder}: no run (plan.json) in it; give a results_dir of fsmis.run")
    differing = differences([plan for _, plan in plans])
    rows: list[dict[Any, Any]] = []
    for (run, plan), own in zip(plans, differing, strict=True):
        scores = run.scores()
        table = summarise(scores, plan["organs"]).set_index("organ")
        rows.append(
            {label: plan[label] for label in LABELS}
            | own
            | table["dice"].drop(MEAN).to_dict()
            | table.loc[MEAN, ["dice", "sd", "scans"]].rename({"dice": "mean"}).to_dict()
            | {"covered": completeness(scores, plan, run.states(plan["cells"], scores))}
            | {"variant": plan["variant"]}
        )
    settings = list(dict.fromkeys(name for names in differing for name in names))
    organs = list(dict.fromkeys(organ for _, plan in plans for organ in plan["organs"]))
    rows.sort(key=lambda row: [_order(row.get(name)) for name in LABELS + settings])
    # settings of any type stay what they are, 8 does not become 8.0 beside a run without it
    frame = pd.DataFrame(rows, columns=LABELS + settings + organs + SUMMARY, dtype=object)
    frame = frame.astype(dict.fromkeys([*organs, "mean", "sd"], float) | {"scans": int})
    return frame, settings, organs


def differences(plans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices and settings in which runs differ, for each run.

    A setting counts where runs of the same choice of its group differ in it: two matchers differ in
    name, not in the settings that only one of them has.
    """
    described = []
    values = defaultdict(set)
    for plan in plans:
        choices = {name: str(value) for name, value in plan["choices"].items()}
        settings = plan["identity"]["method"] | {"seed": plan["identity"]["seed"]}
        for name in [name for name in settings if name.split(".")[-1] == "_target_"]:
            del settings[name]
        described.append(choices | settings)
        for name, value in described[-1].items():
            group = None if name in choices else choices.get(name.split(".")[0])
            values[name, plan["method"], group].add(str(value))
    varied = {name for (name, _, _), found in values.items() if len(found) > 1}
    return [{name: value for name, value in run.items() if name in varied} for run in described]


def _order(value: Any) -> tuple[float, str]:
    """Numbers by size, then text by alphabet."""
    return (value, "") if isinstance(value, int | float) else (math.inf, str(value))


if __name__ == "__main__":
    main()
