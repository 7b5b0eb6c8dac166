"""An image with its label, read together: they must lie on each other."""

from pathlib import Path

import numpy as np

from fsmis.data.nifti import read_volume
from fsmis.errors import UserError


def read_pair(
    image_path: Path, label_path: Path, *, geometry_mm: float, label_tolerance: float
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float], np.ndarray]:
    """Read an image and its label as ``read_volume`` does.

    Args:
        image_path: see ``read_volume``.
        label_path: see ``read_volume``.
        geometry_mm: largest difference of the two affines.
        label_tolerance: largest distance of a stored label value to a whole number.

    Returns:
        image [Z, H, W] as stored, label int64 [Z, H, W], spacing in mm (z, y, x), affine [4, 4].

    Raises:
        UserError: a file cannot be read, the two differ in shape or geometry, or a label value is
            no whole number.
    """
    image, spacing, affine = read_volume(image_path)
    label, _, label_affine = read_volume(label_path)
    if label.shape != image.shape:
        raise UserError(
            f"{label_path}: shape {label.shape} (z, y, x) differs from {image.shape} of "
            f"{image_path.name}; get both again from the same scan"
        )
    difference = float(np.abs(label_affine - affine).max())
    if difference > geometry_mm:
        raise UserError(
            f"{label_path}: affine differs from that of {image_path.name} by up to "
            f"{difference:g} mm, more than {geometry_mm:g}, so the label may lie flipped or "
            "shifted on the image; get both again from the same scan"
        )
    values = np.unique(label)
    distance = np.abs(values - np.round(values))
    if distance.max() > label_tolerance:
        raise UserError(
            f"{label_path}: label value {values[distance.argmax()]:g} is not a whole number; get "
            "the file again, or resample labels with nearest neighbour"
        )
    return image, np.round(label).astype(np.int64), spacing, affine
