"""Table and figure: Dice with each size and version of the segmenter.

python -m experiments.ablation_model_size results/runs [--dataset chaos_mri] [--out DIR]
    [key=value ...]
"""

from collections.abc import Sequence

from experiments.draw_comparison import groups
from experiments.finished_runs import PlannedRun
from experiments.tabulate import find, requested, write_comparison
from fsmis.cli import command_line

VERSIONS = {"sam2": "SAM2", "sam2.1": "SAM2.1"}
OWN = "sam2_mini"  # SAM2's architecture, trained by this project


def names(run: PlannedRun) -> dict[str, str]:
    """Version and size of a run's segmenter, from the name of its configuration."""
    segmenter = run.values["segmenter"]
    version, size = segmenter.split("_", maxsplit=1)
    return {"version": "ours" if segmenter == OWN else VERSIONS[version], "size": size}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``ablation_model_size_<dataset>`` from finished runs."""
    with command_line():
        request = requested("ablation_model_size", __doc__, arguments)
        found = find(request, names)
        figure = groups(found.comparison, "size", "version")
        write_comparison(request, found, "Ablation of model size and version", figure)


if __name__ == "__main__":
    main()
