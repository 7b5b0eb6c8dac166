"""Labelled slices and a whole query of other geometry as one episode, and its answer brought back.

All slices come to one square grid, their grey values to [0, 1]. No protocol tells here which
labelled slice serves which slice of the query: their place along the body does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import distance_transform_edt
from skimage.filters import threshold_otsu

from fsmis.data.dataset import Scan, scale_intensities
from fsmis.data.geometry import AxialVolume, CommonGrid
from fsmis.data.labelled_slice import LabelledSlice
from fsmis.data.protocol import Episode, OrganTask
from fsmis.errors import UserError
from fsmis.segmenters import Segmenter

if TYPE_CHECKING:
    from fsmis.pipeline.matching import Matcher

BATCH = 16  # images compared at a time
AIR_HU = -200  # below it lies more than a thousandth of any CT, and of nothing else
AROUND_MM = 20  # what lies as near to a label counts as its surroundings
KEPT = (2, 98)  # percentiles of labels and surroundings that a window spans
APART_HU = 250  # what differs from the labels by more, as lung and bone from organs, does not count
PERCENTILES = (0.5, 99.5)  # of a volume, where histograms are compared
PLACES = 8  # along a query, where its histogram is compared with that of fewer slices
MARGIN = 0.1  # of the window's width, added at either end


@dataclass(frozen=True)
class Intensities:
    """How grey values become [0, 1], for each volume on its own.

    Attributes:
        window: values kept, (low, high); None for all.
        percentiles: of what is kept; become 0 and 1.
    """

    window: Sequence[float] | None
    percentiles: Sequence[float]

    def scale(self, pixels: np.ndarray) -> np.ndarray:
        """Scale a whole volume: float32 of the same shape."""
        kept = pixels if self.window is None else np.clip(pixels, self.window[0], self.window[1])
        return scale_intensities(kept, self.percentiles)


def is_ct(volume: AxialVolume) -> bool:
    """Whether the values can be Hounsfield units: air lies far below 0."""
    return bool(np.quantile(volume.pixels, 0.001) < AIR_HU)


def window_of(slices: Sequence[LabelledSlice]) -> tuple[float, float]:
    """A window for what is labelled in CTs: the values of the labels and of what surrounds them,
    without the extremes, so that organs that differ by a few HU differ in grey too."""
    pixels = [some.volume.pixels[some.position] for some in slices]
    labelled = [values[some.labels > 0] for values, some in zip(pixels, slices, strict=True)]
    low, high = np.percentile(np.concatenate(labelled), KEPT)
    around = []
    for values, some in zip(pixels, slices, strict=True):
        near = distance_transform_edt(some.labels == 0, some.volume.spacing[1:]) <= AROUND_MM
        around.append(values[near & (values >= low - APART_HU) & (values <= high + APART_HU)])
    low, high = np.percentile(np.concatenate(around), KEPT)
    margin = MARGIN * max(high - low, 1.0)
    return float(np.floor(low - margin)), float(np.ceil(high + margin))


def unlikeness(support: np.ndarray, query: np.ndarray) -> float:
    """How far the grey values of two volumes' bodies lie apart, in [0, 1]: the Wasserstein distance
    of their histograms, each scaled by itself; of a query with more slices than the support, as
    many as that has, where they are most alike.

    Measured with supports of one slice: at most 0.08 between two CTs or two T2 MRs, at least 0.15
    between a CT and a T2 MR.
    """
    count = min(len(support), len(query))
    starts = np.unique(np.linspace(0, len(query) - count, PLACES).round().astype(int))
    grey = _grey_values(support)
    distances = [np.abs(grey - _grey_values(query[z : z + count])).mean() for z in starts]
    return float(min(distances))


def _grey_values(pixels: np.ndarray) -> np.ndarray:
    """Quantiles of the body's."""
    scaled = scale_intensities(pixels, PERCENTILES)
    body = scaled[scaled > threshold_otsu(scaled.ravel()) / 2] if np.ptp(scaled) else scaled.ravel()
    return np.quantile(body, np.linspace(0.01, 0.99, 99))


def pair(
    support: Sequence[LabelledSlice],
    query: AxialVolume,
    grid: CommonGrid,
    intensities: Intensities,
) -> Episode:
    """The episode of all labels of some slices and all slices of the query, on their common grid.

    The organs are the label values as text, from the largest mean area to the smallest. The support
    scan is the whole volume that was labelled; of several volumes it is the labelled slices alone,
    in their order, its slice distance NaN. Of a label in several slices the first serves all
    slices of the query; see :func:`served`. A label that covers no pixel of the grid is left out.

    Raises:
        UserError: no label covers a pixel.
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
        if masks:
            tasks[str(value)] = OrganTask(
                str(value),
                np.array(list(masks)),
                np.stack(list(masks.values())),
                positions,
                np.zeros_like(positions),
            )
    if not tasks:
        raise UserError(f"no label covers a pixel of {grid.pixel_mm:.2f} mm; raise size")

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
    nearest, for each organ, beside it by the one on its other side, where there is one; of several
    volumes, or without a segmenter, by the one most like it."""
    if all(len(task.support_slices) == 1 for task in episode.organs.values()):
        return episode
    from fsmis.pipeline.alignment import place_support  # slow to load, and not always used
    from fsmis.segmenters.features import batches

    found = None
    if segmenter is not None:
        portions = batches(episode.query.image, segmenter.batch_size)
        found = place_support(segmenter, episode, map(segmenter.encode, portions))
    if found is None:
        return _served_by_likeness(episode, segmenter)
    tasks = {
        organ: _served_by_place(task, found[task.support_slices])
        for organ, task in episode.organs.items()
    }
    return replace(episode, organs=tasks)


def _served_by_place(task: OrganTask, places: np.ndarray) -> OrganTask:
    """``places``: position of each labelled slice in the query, float ``[P]`` ascending."""
    part = np.abs(places - task.query_slices[:, None]).argmin(axis=1)
    beside = np.where(places[part] <= task.query_slices, part + 1, part - 1)
    beside[beside == len(places)] = -1
    beside[task.support_slices[beside] == task.support_slices[part]] = -1  # it serves already
    return replace(task, part=part, beside=beside)


def _served_by_likeness(episode: Episode, segmenter: Segmenter | None) -> Episode:
    from fsmis.pipeline.distances import Ncc  # slow to load, and not always used
    from fsmis.pipeline.matching import EncoderFeatures, match

    queries: Any = episode.query.image
    supports: Any = episode.support.image
    matcher: Matcher[Any] = Ncc(image_size=None, batch_size=BATCH)
    if segmenter is not None:
        matcher = EncoderFeatures(level=-1, batch_size=BATCH)
        queries, supports = segmenter.encode(queries), segmenter.encode(supports)
    tasks = {
        organ: replace(
            task, part=match(matcher, queries, supports[task.support_slices])[:, 0], beside=None
        )
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
