"""Table and figure: Dice against the number of copies of a support slice, a line for each matcher.

python -m experiments.ablation_count_and_matcher results/runs [--dataset chaos_mri] [--out DIR]
    [key=value ...]

A matcher that chooses well gains from more copies; ``random`` says what more copies bring without.
"""

from collections.abc import Sequence

from experiments.draw_comparison import lines
from experiments.tabulate import find, requested, swept, write_comparison
from fsmis.cli import command_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``ablation_count_and_matcher_<dataset>`` from finished runs."""
    with command_line():
        request = requested("ablation_count_and_matcher", __doc__, arguments)
        found = find(request, swept({"support_set.count": "copies"}))
        figure = lines(found.comparison, "copies", "matcher", "copies of each support slice")
        write_comparison(request, found, "Ablation of the copies and the matcher", figure)


if __name__ == "__main__":
    main()
