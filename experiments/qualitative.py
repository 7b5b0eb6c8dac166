"""Figure: query slices with the truth and what each method answered, side by side.

    python -m experiments.qualitative results/runs [--dataset chaos_mri] [--out DIR]
        [method=copy_mask,augment_match_prompt] [key=value ...]

Of the runs of ``conf/experiment/main_results.yaml`` that have saved their predictions: the scans in
which the method under study is worst, median and best, each in the slice that shows most organs.
"""

from collections.abc import Sequence

import pandas as pd
from hydra.utils import instantiate

from fsmis.cli import command_line
from fsmis.datasets import Dataset
from fsmis.errors import UserError
from fsmis.reporting.paper.files import write_figures, write_table
from fsmis.reporting.paper.planned import Experiment
from fsmis.reporting.paper.qualitative import (
    SAVED,
    answered_by_all,
    draw,
    extremes,
    name_of,
    prediction,
    row_of,
)
from fsmis.reporting.paper.table import requested, say_what_is_missing
from fsmis.runs import display

EXPERIMENT = "main_results"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``qualitative_<dataset>`` from finished runs."""
    with command_line():
        request = requested("qualitative", __doc__, arguments)
        experiment = Experiment(EXPERIMENT, request.overrides)
        runs, missing = {}, []
        for planned in experiment.runs:
            run = request.runs.find(planned)
            if run is None or not all(prediction(run, c).is_file() for c in run.plan["cells"]):
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
        dataset: Dataset = instantiate(runs[studied].config.dataset)
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
