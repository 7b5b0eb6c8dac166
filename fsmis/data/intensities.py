"""How the grey values of a volume become [0, 1], told or found out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt
from skimage.filters import threshold_otsu

from fsmis.data.dataset import scale_intensities
from fsmis.data.geometry import AxialVolume
from fsmis.data.labelled_slice import LabelledSlice

AIR_HU = -200  # below it lies more than a thousandth of any CT, and of nothing else
AROUND_MM = 20  # what lies as near to a label counts as its surroundings
KEPT = (2, 98)  # percentiles of labels and surroundings that a window spans
APART_HU = 250  # what differs from the labels by more, as lung and bone from organs, does not count
PERCENTILES = (0.5, 99.5)  # of a volume, where histograms are compared
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


def unlikeness(a: np.ndarray, b: np.ndarray) -> float:
    """How far the grey values of two volumes' bodies lie apart, in [0, 1]: the Wasserstein distance
    of their histograms, each volume scaled by itself.

    Measured: at most 0.07 between two CTs or two T2 MRs, 0.3 between a CT and a T2 MR.
    """
    quantiles = []
    for pixels in (a, b):
        scaled = scale_intensities(pixels, PERCENTILES)
        body = scaled[scaled > threshold_otsu(scaled) / 2] if np.ptp(scaled) else scaled.ravel()
        quantiles.append(np.quantile(body, np.linspace(0.01, 0.99, 99)))
    return float(np.abs(quantiles[0] - quantiles[1]).mean())


FLAT = 0.98  # share of voxels of one value from which a volume counts as nearly constant


def notes_on(name: str, pixels: np.ndarray) -> list[str]:
    """Remarks on a volume ``[Z, H, W]`` that is constant, nearly so, or has empty slices.

    Empty slices hold one value: padding, or where a scanner wrote nothing.
    """
    if pixels.min() == pixels.max():
        return [f"{name}: every voxel has the value {pixels.flat[0]:g}; nothing can be found in it"]
    remarks = []
    usual = np.partition(pixels, pixels.size // 2, axis=None)[pixels.size // 2]
    share = np.count_nonzero(pixels == usual) / pixels.size
    if share >= FLAT:  # above one half, the usual value can be no other
        remarks.append(
            f"{name}: nearly constant, {100 * share:.1f} % of its voxels have the value {usual:g}"
        )
    flat = pixels.reshape(len(pixels), -1)
    empty = np.flatnonzero(flat.min(axis=1) == flat.max(axis=1))
    if len(empty):
        remarks.append(f"{name}: {len(empty)} of {len(pixels)} slices are empty, of one value each")
    return remarks
