"""Illustration of stages 1 and 2: a support slice, its augmented copies, and what matched what.

    python -m experiments.support_set_and_matching [key=value ...]

Composes ``conf/config.yaml`` with the overrides, segments one query scan of the first fold chosen,
and draws ``<results_dir>/support_set_and_matching.png`` and ``.pdf``. The query's labels are not
read.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fsmis.cli import command_line
from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.methods.augment_match_prompt import AugmentMatchPrompt
from fsmis.reporting.figures import PREDICTION, PROMPT, outline, show
from fsmis.reporting.paper_table import write_figures
from fsmis.settings import composed

SHOWN = 6  # copies and query slices in the figure


def draw(method: AugmentMatchPrompt, episode: Episode, organ: str) -> Figure:
    """Row 1: the support slice and copies of it; rows 2 and 3: query slices with their answer,
    and the copy that each was matched with."""
    masks = method.segment(episode)[organ]
    task = episode.organs[organ]
    middle = len(task.support_slices) // 2
    z = task.support_slices[middle]
    copies = method.support_set.construct(
        episode.support.image[z],
        {organ: task.support_masks[middle]},
        len(task.query_slices),
        f"{episode.dataset}/{episode.support.id}/{z}",
    )
    figure = Figure(figsize=(2 * SHOWN, 6.6), layout="constrained")
    axes = figure.subplots(3, SHOWN, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    rows = zip(axes[0], copies.images, copies.masks[organ], strict=False)
    for number, (axis, image, mask) in enumerate(rows):
        _draw(axis, image, mask, PROMPT)
        axis.set_title(f"copy {number}" if number else "labelled support", fontsize=9)
    spread = np.linspace(0, len(task.query_slices) - 1, SHOWN + 2).round().astype(int)[1:-1]
    for column, row in enumerate(np.unique(spread)):
        query, match = task.query_slices[row], method.matches[organ][row]
        _draw(axes[1, column], episode.query.image[query], masks[row], PREDICTION)
        axes[1, column].set_title(f"query slice {query}: answer", fontsize=9)
        _draw(axes[2, column], match.image, match.mask, PROMPT)
        axes[2, column].set_title("matched copy", fontsize=9)
    figure.suptitle(
        f"{episode.dataset}: {organ}, support scan {episode.support.id}, query scan "
        f"{episode.query.id}, {len(copies.images)} copies",
        fontsize=10,
    )
    return figure


def _draw(axis: Axes, image: np.ndarray, mask: np.ndarray, colour: str) -> None:
    show(axis, image)
    outline(axis, mask, colour, width=1.5)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.support_set_and_matching",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="settings, as fsmis run has them")
    overrides = parser.parse_args(arguments).overrides
    with command_line():
        config = composed(overrides)
        method = instantiate(config.method)
        if not isinstance(method, AugmentMatchPrompt):
            raise UserError(
                f"{config.method._target_} makes and matches no copies; take "
                "method=augment_match_prompt"
            )
        dataset, protocol = instantiate(config.dataset), instantiate(config.protocol)
        split = protocol.splits(dataset)[0]
        support, query = dataset.load(split.support_id), dataset.load(split.query_ids[0])
        episode = protocol.episode(dataset, split, support, query)
        figure = draw(method, episode, next(iter(episode.organs)))
        for path in write_figures(Path(config.results_dir) / "support_set_and_matching", figure):
            print(path)


if __name__ == "__main__":
    main()
