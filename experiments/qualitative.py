"""Figure: query slices with the truth and what each method answered, side by side.

    python -m experiments.qualitative results/runs [--dataset chaos_mri] [--out DIR]
        [method=copy_mask,augment_match_prompt] [key=value ...]

Of the runs of ``conf/experiment/main_results.yaml`` that have saved their predictions: the scans in
which the method under study is worst, median and best, each in the slice that shows most organs.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fsmis.cli import command_line
from fsmis.data.dataset import Dataset, Scan
from fsmis.data.nifti import read_volume
from fsmis.errors import UserError
from fsmis.reporting import display
from fsmis.reporting.figures import fill, organ_colours, show
from fsmis.reporting.paper_rows import Experiment, PlannedRun
from fsmis.reporting.paper_table import (
    requested,
    say_what_is_missing,
    write_figures,
    write_table,
)
from fsmis.reporting.runs import StoredRun
from fsmis.reporting.statistics import ranked
from fsmis.runs.records import Cell

SAVED = "save_predictions=true"
OPACITY = 0.55
SIDE = 1.8  # of a slice in the figure, inch


@dataclass(frozen=True, eq=False)
class Row:
    """One row of the figure: slice ``z`` of the ``worst``, ``median`` or ``best`` scan.

    By method, ``predictions`` are uint8 [H, W] label ids of that slice, ``dice`` is in percent, the
    mean over the organs of the scan.
    """

    rank: str
    scan: Scan
    z: int
    predictions: dict[str, np.ndarray]
    dice: dict[str, float]


def prediction(run: StoredRun, cell: Cell) -> Path:
    return run.folder.path / f"predictions/{cell.name}.nii.gz"


def name_of(run: PlannedRun) -> str:
    others = [value for key, value in run.values.items() if key != "method"]
    return ", ".join([run.method, *others])


def extremes(run: StoredRun, cells: Sequence[Cell]) -> dict[str, Cell]:
    """The worst, the median and the best of some scans, fewer where there are not three."""
    ascending = [cell for key in ranked(run.scores).index if (cell := Cell(*key)) in cells]
    last = len(ascending) - 1
    places = {"worst": 0, "best": last, "median": last // 2}
    first = {place: rank for rank, place in reversed(places.items())}  # worst and best go before
    return {first[place]: ascending[place] for place in sorted(first)}


def fullest_slice(scan: Scan, organs: dict[str, int]) -> int:
    """The slice with most organs, and among those with most of their pixels."""
    assert scan.label is not None
    areas = np.stack([(scan.label == value).sum(axis=(1, 2)) for value in organs.values()])
    return int(np.lexsort((areas.sum(axis=0), (areas > 0).sum(axis=0)))[-1])


def answered_by_all(runs: Sequence[StoredRun]) -> list[Cell]:
    """The scans that all runs have scored, with predictions kept; UserError without any."""
    scored = [ranked(run.scores).index for run in runs]
    cells = [
        cell
        for cell in runs[0].plan["cells"]
        if all(astuple(cell) in found for found in scored)
        and all(prediction(run, cell).is_file() for run in runs)
    ]
    if not cells:
        paths = ", ".join(str(run.folder.path) for run in runs)
        raise UserError(f"{paths}: no scan has predictions in all of them; run with {SAVED}")
    return cells


def row_of(rank: str, cell: Cell, runs: dict[str, StoredRun], dataset: Dataset) -> Row:
    scan = dataset.load(cell.query_scan)
    z = fullest_slice(scan, dataset.organs)
    answers = {name: read_volume(prediction(run, cell))[0][z] for name, run in runs.items()}
    dice = {name: ranked(run.scores)[astuple(cell)] for name, run in runs.items()}
    return Row(rank, scan, z, answers, dice)


def draw(rows: list[Row], organs: dict[str, int]) -> Figure:
    """A row for each scan: the slice, the truth, each method's prediction with its Dice."""
    methods, colours = list(rows[0].predictions), organ_colours(list(organs))
    size = (SIDE * (2 + len(methods)), SIDE * len(rows) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), 2 + len(methods), squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        assert row.scan.label is not None
        for axis in line:
            show(axis, row.scan.image[row.z])
        line[0].set_ylabel(f"{row.rank}\nscan {row.scan.id}, slice {row.z}", fontsize=8)
        labels = [row.scan.label[row.z], *(row.predictions[method] for method in methods)]
        for axis, label in zip(line[1:], labels, strict=True):
            for organ, value in organs.items():
                fill(axis, label == value, colours[organ], OPACITY)
        for axis, method in zip(line[2:], methods, strict=True):
            axis.set_xlabel(f"Dice {row.dice[method]:.1f}", fontsize=8)
    for axis, name in zip(axes[0], ["query slice", "truth", *methods], strict=True):
        axis.set_title(name, fontsize=8)
    patches = [Patch(color=colour, label=organ) for organ, colour in colours.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)
    return figure


EXPERIMENT = "main_results"


def main(arguments: Sequence[str] | None = None) -> None:
    with command_line(), requested("qualitative", __doc__, arguments) as request:
        experiment = Experiment(EXPERIMENT, request.overrides)
        runs, missing = {}, []
        for planned in experiment.runs:
            run = request.runs.find(planned)
            cells = [] if run is None else run.cells(planned.fold)
            if run is None or not all(prediction(run, cell).is_file() for cell in cells):
                missing.append(planned)
            if run is not None and any((run.folder.path / "predictions").glob("*.nii.gz")):
                runs[name_of(planned)] = run
        commands = [experiment.command(missing, request.runs.results, SAVED)] if missing else []
        if not runs:
            raise UserError(
                f"{request.runs.results}: no run with predictions; make them with: {commands[0]}"
            )
        of_base = [name for name, run in runs.items() if run.method == experiment.base.method]
        studied = next(iter([*of_base, *runs]))
        # of a run in a bundle the scans lie elsewhere here
        config = runs[studied].config
        for override in OverridesParser.create().parse_overrides(request.overrides):
            if override.key_or_group == "dataset.root":
                config.dataset.root = override.value()
        dataset: Dataset = instantiate(config.dataset)
        cells = answered_by_all(list(runs.values()))
        chosen = extremes(runs[studied], cells)
        rows = [row_of(rank, cell, runs, dataset) for rank, cell in chosen.items()]
        frame = pd.DataFrame(
            [{"rank": r.rank, "scan": r.scan.id, "slice": r.z} | r.dice for r in rows]
        )
        title = f"Scans in which {studied} is worst, median and best, {dataset.name}"
        notes = [
            f"Of the {len(cells)} scans that all methods have answered.",
            "Dice in percent, mean over the organs of the scan.",
        ]
        paths = write_table(request.stem, title, frame, frame, notes)
        paths += write_figures(request.stem, draw(rows, dataset.organs))
        display.table(title, frame, [*notes, *map(str, paths)])
        say_what_is_missing(commands)


if __name__ == "__main__":
    main()
