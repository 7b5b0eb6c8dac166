"""Table and figure: Dice with each kind of augmentation of the support slice.

python -m experiments.ablation_augmentation_kind results/runs [--dataset chaos_mri] [--out DIR]
    [key=value ...]
"""

from collections.abc import Sequence

from experiments.draw_comparison import dots
from experiments.tabulate import find, requested, swept, write_comparison
from fsmis.cli import command_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``ablation_augmentation_kind_<dataset>`` from finished runs."""
    with command_line():
        request = requested("ablation_augmentation_kind", __doc__, arguments)
        found = find(request, swept({"support_set.kind": "augmentation"}))
        title = "Ablation of the kind of augmentation"
        write_comparison(request, found, title, dots(found.comparison))


if __name__ == "__main__":
    main()
