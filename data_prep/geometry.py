"""Resampling and cutting volumes [Z, H, W], by the protocol's numbers."""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

MOST_VOXELS = 4096  # along an axis


def grid_size(shape: Sequence[int], old_mm: Sequence[float], new_mm: Sequence[float]) -> list[int]:
    """Voxels after resampling along each axis, as the field's public preparation counts them.

    Raises:
        ValueError: more than any scanner makes.
    """
    sizes = [int(n * old / new + 1) for n, old, new in zip(shape, old_mm, new_mm, strict=True)]
    if max(sizes) > MOST_VOXELS:
        mm = ", ".join(f"{size:g}" for size in old_mm)
        raise ValueError(f"voxels of {mm} mm (z, y, x) give {max(sizes)} along an axis")
    return sizes


def resample(
    pixels: np.ndarray,
    old_mm: Sequence[float],
    new_mm: Sequence[float],
    shape: Sequence[int],
    outside: float,
) -> np.ndarray:
    """Resample [Z, H, W] linearly to another voxel size; the first voxel's centre stays in place.

    Voxel sizes and ``shape`` are (z, y, x). Returns float32; voxels outside the volume have the
    value ``outside``.
    """
    image = sitk.GetImageFromArray(pixels.astype(np.float32))
    image.SetSpacing([float(mm) for mm in reversed(old_mm)])
    resampled = sitk.Resample(
        image,
        [int(n) for n in reversed(shape)],
        sitk.Transform(),
        sitk.sitkLinear,
        image.GetOrigin(),
        [float(mm) for mm in reversed(new_mm)],
        image.GetDirection(),
        float(outside),
    )
    return sitk.GetArrayFromImage(resampled)


def resample_label(
    label: np.ndarray, old_mm: Sequence[float], new_mm: Sequence[float], shape: Sequence[int]
) -> np.ndarray:
    """``resample`` each class as a linear 0/1 map and round it; uint8."""
    resampled = np.zeros(shape, np.uint8)
    for value in np.unique(label[label > 0]):
        resampled[resample(label == value, old_mm, new_mm, shape, outside=0) > 0.5] = value
    return resampled


def rescaled(affine: np.ndarray, old_mm: Sequence[float], new_mm: Sequence[float]) -> np.ndarray:
    """Affine [4, 4] (x, y, z) after ``resample``; the voxel sizes are (z, y, x)."""
    return affine @ np.diag([*np.divide(new_mm, old_mm)[::-1], 1.0])


def crop_or_pad(
    pixels: np.ndarray, affine: np.ndarray, size: int, outside: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cut or pad slices [Z, H, W] to ``size`` rows and columns, with their affine.

    Pixel n // 2 becomes size // 2.
    """
    starts = [n // 2 - size // 2 for n in pixels.shape[1:]]
    padding = [
        (max(0, -start), max(0, start + size - n))
        for start, n in zip(starts, pixels.shape[1:], strict=True)
    ]
    padded = np.pad(pixels, [(0, 0), *padding], constant_values=outside)
    row, column = (max(0, start) for start in starts)
    return padded[:, row : row + size, column : column + size], shifted(affine, *starts)


def shifted(affine: np.ndarray, row: int, column: int) -> np.ndarray:
    """Affine [4, 4] (x, y, z) of slices that start at this row and column."""
    shift = np.eye(4)
    shift[:2, 3] = column, row
    return affine @ shift
