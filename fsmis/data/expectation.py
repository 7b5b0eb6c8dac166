"""What the prepared scans of a dataset have in common, as stated in ``conf/dataset/*.yaml``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CT_RANGE = (0, 255)  # of a CT's window after preparation
STORAGE_MM = 1e-3  # geometry is stored in float32: what differs by less is the same
AXES = {"columns": 2, "rows": 1, "slices": 0}  # of [Z, H, W]
MM3_PER_ML = 1000
CLEAR = 2.0  # outline contrast below which a label fits by chance


@dataclass(frozen=True)
class Expectation:
    """What is null is not checked.

    Attributes:
        spacing: mm (z, y, x).
        window: Hounsfield units that the preparation maps to ``CT_RANGE``.
        organ_ml: lowest and highest plausible volume of each organ.
        flip_margin: how many times better a label may fit its image when flipped along an axis.
        turned: degrees by which an axis of a scan may differ from that of most scans.
    """

    spacing: Sequence[float] | None = None
    window: Sequence[float] | None = None
    organ_ml: Mapping[str, Sequence[float]] | None = None
    flip_margin: float | None = None
    turned: float | None = None

    def problems(
        self,
        image: np.ndarray,
        label: np.ndarray,
        spacing: Sequence[float],
        organ_ml: Mapping[str, float],
    ) -> list[str]:
        """How a scan differs from what is expected, each with what to do.

        Args:
            image: [Z, H, W] as stored; ``label`` likewise, of label ids.
            spacing: mm (z, y, x).
            organ_ml: volume of each scored organ that is present (``organ_volumes``).
        """
        return [
            f"{problem}, or accept it with dataset.expected.{key}=null"
            for key, problem in (
                *(("spacing", problem) for problem in self._spacing(spacing)),
                *(("window", problem) for problem in self._window(image)),
                *(("organ_ml", problem) for problem in self._volumes(organ_ml)),
                *(("flip_margin", problem) for problem in self._flips(image, label)),
            )
        ]

    def _spacing(self, spacing: Sequence[float]) -> list[str]:
        if self.spacing is None or np.allclose(spacing, self.spacing, rtol=0, atol=STORAGE_MM):
            return []
        found, expected = (" x ".join(f"{mm:g}" for mm in s) for s in (spacing, self.spacing))
        return [f"voxels of {found} mm (z, y, x), not {expected}; prepare the scan again"]

    def _window(self, image: np.ndarray) -> list[str]:
        low, high = CT_RANGE
        if self.window is None or low <= image.min() <= image.max() <= high:
            return []
        bottom, top = self.window
        return [
            f"intensities from {image.min():g} to {image.max():g}, but {bottom:g} to {top:g} HU "
            f"become {low} to {high}; prepare the scan again"
        ]

    def _volumes(self, organ_ml: Mapping[str, float]) -> list[str]:
        if self.organ_ml is None:
            return []
        if not organ_ml:
            return ["no scored organ is labelled; prepare the scan again"]
        limits = {organ: self.organ_ml[organ] for organ in organ_ml if organ in self.organ_ml}
        return [
            f"{organ} of {organ_ml[organ]:.0f} ml, outside {low:g} to {high:g} ml; look at it"
            for organ, (low, high) in limits.items()
            if not low <= organ_ml[organ] <= high
        ]

    def _flips(self, image: np.ndarray, label: np.ndarray) -> list[str]:
        if self.flip_margin is None or min(image.shape[1:]) < 2:
            return []
        gradient = in_plane_gradient(image)
        fit = outline_contrast(gradient, label)
        flipped = {
            name: outline_contrast(gradient, np.flip(label, axis)) for name, axis in AXES.items()
        }
        return [
            f"the label fits its image better with its {name} flipped (outline contrast "
            f"{flipped[name]:.2f}, as it is {fit:.2f}); look at it and prepare the scan again"
            for name in AXES
            if flipped[name] > max(CLEAR, self.flip_margin * fit)
        ]


def organ_volumes(
    label: np.ndarray, spacing: Sequence[float], organs: Mapping[str, int]
) -> dict[str, float]:
    """Volume in ml of each organ (name -> label id) that a label map [Z, H, W] holds."""
    voxel_ml = float(np.prod(spacing)) / MM3_PER_ML
    counts = {organ: int((label == value).sum()) for organ, value in organs.items()}
    return {organ: count * voxel_ml for organ, count in counts.items() if count}


def in_plane_gradient(image: np.ndarray) -> np.ndarray:
    """Gradient magnitude of slices [Z, H, W], H and W at least 2; float32, the same shape."""
    return np.hypot(*np.gradient(image.astype(np.float32), axis=(1, 2)))


def outline_contrast(gradient: np.ndarray, label: np.ndarray) -> float:
    """Mean of a gradient along the outlines of a label map over its mean; 0 without outlines.

    About 1 for a label map that has nothing to do with the image. On the 20 scans of CHAOS-MRI 2.8
    to 7.2, and at least 1.4 times that of the same label map flipped along any axis.
    """
    outline = np.zeros(label.shape, bool)
    outline[:, 1:] |= label[:, 1:] != label[:, :-1]
    outline[:, :, 1:] |= label[:, :, 1:] != label[:, :, :-1]
    if not outline.any() or not gradient.any():
        return 0.0
    return float(gradient[outline].mean() / gradient.mean())
