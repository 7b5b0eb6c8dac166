"""Any stored volume as axial slices, and axial slices on a grid that two volumes share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from fsmis.errors import UserError

# As the prepared scans lie: columns grow to the left, rows to the front, slices to the head.
AXES = axcodes2ornt("LAS")


@dataclass(frozen=True, eq=False)
class AxialVolume:
    """A volume turned so that its slices are axial, without resampling.

    Oblique volumes are turned to the nearest axes, only by quarter turns and flips.

    Attributes:
        pixels: [Z, H, W]; row 0 is posterior, column 0 to the patient's right, slice 0 at the feet.
        affine: float64 [4, 4] of ``pixels``, voxel (x, y, z) to mm.
        stored: orientation of the file, as in ``nibabel.orientations``.
        stored_affine: the file's own affine.
    """

    pixels: np.ndarray
    affine: np.ndarray
    stored: np.ndarray
    stored_affine: np.ndarray

    @classmethod
    def turn(cls, pixels: np.ndarray, affine: np.ndarray) -> "AxialVolume":
        """Turn a volume from ``read_volume``; UserError if two axes point the same way."""
        stored = io_orientation(affine)
        if np.isnan(stored).any():
            raise UserError("the affine's axes are not independent; repair the header")
        turn = ornt_transform(stored, AXES)
        turned = np.ascontiguousarray(apply_orientation(pixels.T, turn).T)
        return cls(turned, affine @ inv_ornt_aff(turn, pixels.T.shape), stored, affine)

    def turn_back(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [Z, H, W] of this volume's grid in the stored axis order."""
        return apply_orientation(pixels.T, ornt_transform(AXES, self.stored)).T

    def axial_slice(self, index: int) -> int:
        """Slice of ``pixels`` for an index along the stored file's axial axis, or the reverse."""
        axial = np.flatnonzero(self.stored[:, 0] == 2)[0]
        return index if self.stored[axial, 1] > 0 else len(self.pixels) - 1 - index

    @property
    def tilt_deg(self) -> float:
        """Largest deviation of two axes of the grid from a right angle: a CT gantry's tilt."""
        unit = self.affine[:3, :3] / voxel_sizes(self.affine)
        cosines = np.abs(unit.T @ unit)[np.triu_indices(3, 1)]
        return float(np.degrees(np.arcsin(cosines.max().clip(max=1))))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm, (z, y, x)."""
        x, y, z = voxel_sizes(self.affine)
        return float(z), float(y), float(x)


@dataclass(frozen=True)
class CommonGrid:
    """Square axial slices that hold the whole field of view of several volumes, centred.

    ``size`` is the number of rows and columns.
    """

    size: int
    pixel_mm: float

    @classmethod
    def around(cls, volumes: Sequence[AxialVolume], size: int) -> "CommonGrid":
        """The finest grid of this size that holds the slices of all volumes."""
        sides = [np.multiply(v.pixels.shape[1:], v.spacing[1:]).max() for v in volumes]
        return cls(size, float(max(sides)) / size)

    def to_common_grid(self, pixels: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """Resample slices [Z, H, W], or one [H, W], linearly; float32 [..., size, size], 0 outside.

        Pixels may be boolean; ``spacing`` is in mm and ends with (y, x).
        """
        return _resample(pixels, spacing[-2:], (self.size, self.size), [self.pixel_mm] * 2)

    def back_to_query(self, masks: np.ndarray, query: AxialVolume) -> np.ndarray:
        """Masks [Z, size, size] on the query's own pixels: bool [Z, H, W], linear, cut at 0.5."""
        shape, spacing = query.pixels.shape[1:], query.spacing[1:]
        return _resample(masks, [self.pixel_mm] * 2, shape, spacing) >= 0.5


def _resample(
    pixels: np.ndarray, old_mm: Sequence[float], shape: Sequence[int], new_mm: Sequence[float]
) -> np.ndarray:
    """Slices [..., H, W] on new pixels around the same centre; sizes and spacings are (y, x)."""
    grid = _centred(sitk.Image(int(shape[1]), int(shape[0]), sitk.sitkFloat32), new_mm)
    resampled = [
        sitk.GetArrayFromImage(
            sitk.Resample(
                _centred(sitk.GetImageFromArray(slice_.astype(np.float32)), old_mm),
                grid,
                sitk.Transform(),
                sitk.sitkLinear,
                0.0,
            )
        )
        for slice_ in pixels.reshape(-1, *pixels.shape[-2:])
    ]
    return np.stack(resampled).reshape(*pixels.shape[:-2], *shape)


def _centred(image: sitk.Image, spacing: Sequence[float]) -> sitk.Image:
    mm = [float(spacing[1]), float(spacing[0])]
    image.SetSpacing(mm)
    image.SetOrigin([-(n - 1) / 2 * side for n, side in zip(image.GetSize(), mm, strict=True)])
    return image
