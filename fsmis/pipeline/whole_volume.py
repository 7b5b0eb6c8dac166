"""Labelled slices and a whole query of other geometry as one episode, and its answer brought back.

All slices come to one square grid. No protocol tells here which labelled slice serves which slice
of the query: their place along the body does.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fsmis.data.dataset import Scan
from fsmis.data.geometry import AxialVolume, CommonGrid
from fsmis.data.intensities import Intensities
from fsmis.data.labelled_slice import LabelledSlice
from fsmis.data.protocol import Episode, OrganTask
from fsmis.errors import UserError
from fsmis.pipeline.alignment import place_support
from fsmis.pipeline.matching import Matcher, match
from fsmis.pipeline.network_distances import EncoderFeatures
from fsmis.pipeline.pixel_distances import Ncc
from fsmis.segmenters import Segmenter
from fsmis.segmenters.features import batches

BATCH = 16  # images compared at a time


def pair(
    support: Sequence[LabelledSlice],
    query: AxialVolume,
    grid: CommonGrid,
    intensities: Intensities,
) -> Episode:
    """The episode of all labels of some slices and all slices of the query, on their common grid.

    The organs are the label values as text, from the largest mean area to the smallest. The support
    scan is the whole volume that was labelled; of several volumes it is the labelled slices alone,
    in their order, its slice distance NaN. Of a label in several slices the first serves all slices
    of the query; see ``served``.

    Raises:
        UserError: a label is too small to be seen on the grid.
    """
    volumes = {id(some.volume): some.volume for some in support}
    scaled = {key: intensities.scale(volume.pixels) for key, volume in volumes.items()}
    if len(volumes) == 1:
        volume = support[0].volume
        supports = grid.to_common_grid(scaled[id(volume)], volume.spacing)
        places, support_mm = [some.position for some in support], volume.spacing[0]
    else:
        slices = [
            grid.to_common_grid(scaled[id(some.volume)][some.position], some.volume.spacing)
            for some in support
        ]
        supports, places, support_mm = np.stack(slices), list(range(len(support))), np.nan
    all_slices = grid.to_common_grid(intensities.scale(query.pixels), query.spacing)
    positions = np.arange(len(all_slices))
    tasks = {}
    for value in _from_large_to_small(support):
        masks = {
            z: mask
            for z, some in zip(places, support, strict=True)
            if (mask := grid.to_common_grid(some.labels == value, some.volume.spacing) >= 0.5).any()
        }
        if not masks:
            raise UserError(
                f"label {value} covers less than a pixel of {grid.pixel_mm:.2f} mm; "
                "leave it out or raise size"
            )
        tasks[str(value)] = OrganTask(
            str(value),
            np.array(list(masks)),
            np.stack(list(masks.values())),
            positions,
            np.zeros_like(positions),
        )

    def scan(name: str, pixels: np.ndarray, slice_mm: float) -> Scan:
        spacing = slice_mm, grid.pixel_mm, grid.pixel_mm
        return Scan(name, pixels, None, spacing, np.diag([*spacing[::-1], 1.0]))

    support_scan = scan("support", supports, support_mm)
    query_scan = scan("query", all_slices, query.spacing[0])
    return Episode("segment", 0, support_scan, query_scan, tasks, whole_volume=True)


def _from_large_to_small(support: Sequence[LabelledSlice]) -> list[int]:
    """Label values by their mean area in mm2, over the slices that have them."""
    areas: dict[int, list[float]] = {}
    for some in support:
        values, counts = np.unique(some.labels[some.labels > 0], return_counts=True)
        for value, count in zip(values.tolist(), counts, strict=True):
            areas.setdefault(value, []).append(count * np.prod(some.volume.spacing[1:]))
    return sorted(sorted(areas), key=lambda value: -float(np.mean(areas[value])))


def served(episode: Episode, segmenter: Segmenter | None) -> Episode:
    """The episode with each query slice served by the labelled slice whose place in the query is
    nearest, for each organ; of several volumes, or without a segmenter, by the one most like it."""
    if all(len(task.support_slices) == 1 for task in episode.organs.values()):
        return episode
    found = None
    if segmenter is not None:
        portions = batches(episode.query.image, segmenter.batch_size)
        found = place_support(segmenter, episode, map(segmenter.encode, portions))
    if found is None:
        return _served_by_likeness(episode, segmenter)
    tasks = {
        organ: replace(
            task,
            part=np.abs(found[task.support_slices] - task.query_slices[:, None]).argmin(axis=1),
        )
        for organ, task in episode.organs.items()
    }
    return replace(episode, organs=tasks)


def _served_by_likeness(episode: Episode, segmenter: Segmenter | None) -> Episode:
    queries: Any = episode.query.image
    supports: Any = episode.support.image
    matcher: Matcher[Any] = Ncc(image_size=None, batch_size=BATCH)
    if segmenter is not None:
        matcher = EncoderFeatures(level=-1, batch_size=BATCH)
        queries, supports = segmenter.encode(queries), segmenter.encode(supports)
    tasks = {
        organ: replace(task, part=match(matcher, queries, supports[task.support_slices])[:, 0])
        for organ, task in episode.organs.items()
    }
    return replace(episode, organs=tasks)


def labels_on_query(
    masks: dict[str, np.ndarray], query: AxialVolume, grid: CommonGrid
) -> np.ndarray:
    """Label values on the voxels of ``query``: uint8 [Z, H, W], or uint16 if one exceeds 255.

    Args:
        masks: bool [Z, size, size] on the grid by label value as text; a later one stands where
            they overlap.
        query: the volume.
        grid: the common grid.
    """
    values = [int(organ) for organ in masks]
    labels = np.zeros(query.pixels.shape, np.uint8 if max(values) < 256 else np.uint16)
    for organ, mask in masks.items():
        labels[grid.back_to_query(mask, query)] = int(organ)
    return labels
