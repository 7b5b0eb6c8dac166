"""A look at a labelled query: the labelled slice beside slices of the query, outlined."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fsmis.data.geometry import AxialVolume, CommonGrid
from fsmis.files.atomic import write_figure
from fsmis.protocol import Episode
from fsmis.reporting.overlay import outline, show
from fsmis.reporting.palette import organ_colours


def draw_preview(
    path: Path,
    episode: Episode,
    labels: np.ndarray,
    query: AxialVolume,
    grid: CommonGrid,
    n_slices: int,
) -> None:
    """Draw up to ``n_slices`` slices of the query, spread over those with a label.

    Patients lie as radiologists see them. Slices are counted from the feet.

    Args:
        path: ``.png``, ``.pdf`` or ``.svg``.
        episode: what the method saw, on the common grid.
        labels: its answer [Z, H, W] on the voxels of ``query``.
        query: the volume in full.
        grid: the common grid.
        n_slices: most slices drawn.
    """
    found = np.flatnonzero(labels.any(axis=(1, 2)))
    candidates = found if len(found) else np.arange(len(labels))
    spread = np.linspace(0, len(candidates) - 1, n_slices).round().astype(int)
    shown = candidates[np.unique(spread)]

    figure = Figure(figsize=(3 * (len(shown) + 1), 3.8), layout="constrained")
    axes = figure.subplots(1, len(shown) + 1)
    images = [episode.support.image[0], *episode.query.image[shown]]
    titles = ["labelled slice", *(f"query, slice {z}" for z in shown)]
    for axis, image, title in zip(axes, images, titles, strict=True):
        show(axis, image)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    colours = organ_colours(list(episode.organs))
    for organ, task in episode.organs.items():
        answers = grid.to_common_grid(labels[shown] == int(organ), query.spacing)
        for axis, mask in zip(axes, [task.support_masks[0], *answers], strict=True):
            outline(axis, mask, colours[organ])
        axes[0].plot([], [], color=colours[organ], label=f"label {organ}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=10)
    write_figure(path, figure)
