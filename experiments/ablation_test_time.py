"""Table and figure: Dice with each switch that acts at test time, without any training.

python -m experiments.ablation_test_time results/runs [--dataset chaos_mri] [--out DIR]
    [key=value ...]

Several matched copies as memories, a second pass through the query volume, flips, the largest
component; ``none`` is the paper's method.
"""

from collections.abc import Sequence

from experiments.draw_comparison import dots
from experiments.tabulate import find, requested, swept, write_comparison
from fsmis.cli import command_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``ablation_test_time_<dataset>`` from finished runs."""
    with command_line():
        request = requested("ablation_test_time", __doc__, arguments)
        found = find(request, swept({"test_time": "at test time"}))
        title = "Ablation of what happens at test time"
        write_comparison(request, found, title, dots(found.comparison))


if __name__ == "__main__":
    main()
