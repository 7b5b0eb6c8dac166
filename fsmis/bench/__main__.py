"""Speed and equality against the reference path: ``python -m fsmis.bench [--out FILE.csv]``.

The reference is the public ``SAM2VideoPredictor`` over a folder of frames and the ``lpips`` package
pair by pair; ours does the same in memory, each image through each network once. Same pixels, same
seeded random weights, same process, in turns; on the CPU.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fsmis.bench import perceptual, two_frame
from fsmis.bench.measure import Network, Way, measure
from fsmis.bench.table import show, tabulate
from fsmis.bench.workload import Workload, phantom_workload
from fsmis.cli import CONF_DIR, command_line
from fsmis.matchers.backbones import BACKBONES
from fsmis.records import write_atomic

NOTES = [
    "times faster: median seconds of the reference (first row) over those of the row.",
    "of floor: median seconds of the row over those of the floor, every distinct image through the "
    "encoder (LPIPS: backbone) once and nothing else.",
    "peak MB: resident memory a run added to the process at its peak (VmHWM - VmRSS at its start; "
    "Linux only).",
    "difference: the largest to the reference, of logits absolute, of LPIPS relative; flipped "
    "pixels: of all masks, (slices x organs) of 256 x 256.",
    "gflop: by torch's counter; a multiplication and an addition are two operations.",
    "The reference reads its frames losslessly, as PNG; writing them is part of its seconds.",
    "Every slice is prompted by a copy of its own where there are enough: the dearest case.",
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write them as CSV."""
    parser = argparse.ArgumentParser(prog="python -m fsmis.bench", description=__doc__)
    segmenters = sorted(path.stem for path in (CONF_DIR / "segmenter").glob("sam2*.yaml"))
    whole, pixels = _at_least(1), _at_least(BACKBONES["alex"].min_size)
    parser.add_argument("--segmenter", choices=segmenters, default="sam2.1_tiny")
    parser.add_argument("--image-size", type=whole, default=256, help="pixels SAM2 sees")
    parser.add_argument("--slices", type=whole, default=8, help="query slices")
    parser.add_argument("--organs", type=int, default=4, choices=range(1, 5))
    parser.add_argument("--copies", type=whole, default=32, help="of the support slice")
    parser.add_argument("--repeats", type=whole, default=3, help="timed runs, after one to count")
    parser.add_argument("--lpips-size", type=pixels, default=128, help="pixels LPIPS sees")
    parser.add_argument("--threads", type=whole, default=1, help="1: steady beside other work")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with command_line():
        work = phantom_workload(options.slices, options.organs, options.copies, options.seed)
        stage3 = compare_two_frame(work, options)
        stage2 = compare_lpips(work, options)
        frame = tabulate(stage3, stage2)
        if options.out:
            write_atomic(options.out, frame.to_csv(index=False).encode())
    show(title(options), frame, NOTES)


def title(options: argparse.Namespace) -> str:
    """What was measured, where."""
    return (
        f"{options.segmenter} at {options.image_size} px, LPIPS at {options.lpips_size} px; "
        f"{options.slices} slices, {options.organs} organs, {options.copies} copies; "
        f"medians of {options.repeats} runs; threads: {options.threads}; torch "
        f"{torch.__version__}"
    )


def _at_least(lowest: int) -> Callable[[str], int]:
    """Type of an option that is a whole number from ``lowest``."""

    def number(text: str) -> int:
        if (value := int(text)) < lowest:
            raise argparse.ArgumentTypeError(f"{value} is less than {lowest}")
        return value

    return number


def compare_two_frame(work: Workload, options: argparse.Namespace) -> list[Way]:
    """Stage 3: reference, reference with all organs in a session, ours, floor."""
    ours, public = two_frame.build(options.segmenter, options.image_size, options.seed)
    organs = list(range(options.organs))
    ways = [
        Way("public", lambda: two_frame.public_logits(public, work, [[o] for o in organs])),
        Way("public, organs together", lambda: two_frame.public_logits(public, work, [organs])),
        Way("ours", lambda: two_frame.shared_logits(ours, work)),
        Way("floor", lambda: two_frame.encode_once(ours, work)),
    ]
    networks = []
    for model in (public, ours.model):
        networks += [
            Network(
                "image_encodes", model.get_submodule("image_encoder"), lambda args, _: len(args[0])
            ),
            Network(
                "attention_rows",
                model.get_submodule("memory_attention"),
                lambda _, kw: kw["curr"][0].shape[1],
            ),
            Network(
                "memory_rows", model.get_submodule("memory_encoder"), lambda args, _: len(args[1])
            ),
        ]
    measure(ways, networks, options.repeats)
    return ways


def compare_lpips(work: Workload, options: argparse.Namespace) -> list[Way]:
    """Stage 2: reference, ours, floor."""
    matcher = perceptual.build(options.lpips_size, options.seed)
    ways = [
        Way("pairwise", lambda: perceptual.pairwise_distances(matcher, work)),
        Way("ours", lambda: perceptual.all_pairs_distances(matcher, work)),
        Way("floor", lambda: perceptual.backbone_once(matcher, work)),
    ]
    # The package calls the backbone's forward past its hooks, but not that of the first layers.
    backbone = Network("backbone_images", matcher.model.net.slice1, lambda args, _: len(args[0]))
    measure(ways, [backbone], options.repeats)
    return ways


if __name__ == "__main__":
    main()
