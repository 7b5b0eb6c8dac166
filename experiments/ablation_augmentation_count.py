"""Table and figure: Dice against the number of augmented copies.

    python -m experiments.ablation_augmentation_count results/runs [--dataset chaos_mri] [--out DIR]
        [key=value ...]

N_T is the paper's number of augmented copies for each query slice: 0, 2, 4 there, and more here.
"""

from collections.abc import Sequence

from experiments.draw_comparison import curve
from experiments.tabulate import find, requested, swept, write_comparison
from fsmis.cli import command_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``ablation_augmentation_count_<dataset>`` from finished runs."""
    with command_line():
        request = requested("ablation_augmentation_count", __doc__, arguments)
        found = find(request, swept({"support_set.per_query_slice": "N_T"}))
        figure = curve(found.comparison, "$N_T$, augmented copies for each query slice")
        write_comparison(request, found, "Ablation of the number of copies", figure)


if __name__ == "__main__":
    main()
