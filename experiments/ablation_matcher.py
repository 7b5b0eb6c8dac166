"""Table and figure: Dice with each distance that matches a query slice with a copy.

    python -m experiments.ablation_matcher results/runs [--dataset chaos_mri] [--out DIR]
        [key=value ...]

LPIPS, SSIM and PSNR as in the paper; correlation and the segmenter's own features; two controls.
"""

from collections.abc import Sequence

from experiments.draw_comparison import dots
from experiments.tabulate import find, requested, swept, write_comparison
from fsmis.cli import command_line


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``ablation_matcher_<dataset>`` from finished runs."""
    with command_line():
        request = requested("ablation_matcher", __doc__, arguments)
        found = find(request, swept({}))
        write_comparison(request, found, "Ablation of the matcher", dots(found.comparison))


if __name__ == "__main__":
    main()
