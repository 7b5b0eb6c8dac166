"""Raw scans that are a NIfTI file each, with a label file beside or in another folder."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fsmis.errors import UserError
from fsmis.nifti import read_volume

WHOLE = 0.01  # largest distance of a label value to a whole number


def find_pairs(root: Path, image: re.Pattern[str], label: re.Pattern[str]) -> dict[str, list[Path]]:
    """Image and label files anywhere below a folder, by the number in their names.

    Args:
        root: the folder.
        image: pattern of whole file names of images; its first group is the number.
        label: the same for labels.

    Returns:
        The scan's image, if it is there, and its label, if it is there, by scan id.

    Raises:
        UserError: a file is there twice.
    """
    found: dict[str, dict[bool, Path]] = {}
    for path in sorted(root.rglob("*.nii*")):
        for pattern in (image, label):
            if match := pattern.fullmatch(path.name):
                pair = found.setdefault(str(int(match[1])), {})
                other = pair.setdefault(pattern is label, path)
                if other != path:
                    raise UserError(f"{path}: the same scan as {other}; remove one of them")
    return {i: [pair[key] for key in sorted(pair)] for i, pair in found.items()}


def read_pair(
    files: Sequence[Path], label: re.Pattern[str], geometry_mm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read what ``find_pairs`` found of a scan.

    Args:
        files: image and label.
        label: pattern of whole file names of labels.
        geometry_mm: largest difference of the two affines.

    Returns:
        image float32 [Z, H, W], label int64 [Z, H, W] of raw values, affine [4, 4] (x, y, z).

    Raises:
        UserError: one is missing or broken, they do not lie on each other, the image is constant,
            or a label value is no whole number.
    """
    if len(files) != 2:
        missing = "image" if label.fullmatch(files[0].name) else "label"
        raise UserError(f"{files[0]}: its {missing} is not there; complete the download")
    image_path, label_path = files
    image, _, affine = read_volume(image_path)
    values, _, label_affine = read_volume(label_path)
    if values.shape != image.shape:
        raise UserError(
            f"{label_path}: shape {values.shape} (z, y, x) differs from {image.shape} of "
            f"{image_path.name}; download both again"
        )
    difference = np.abs(label_affine - affine).max()
    if difference > geometry_mm:
        raise UserError(
            f"{label_path}: affine differs from that of {image_path.name} by up to "
            f"{difference:g} mm, so the label may lie flipped or shifted; download both again"
        )
    if image.min() == image.max():
        raise UserError(f"{image_path}: every voxel is {image.min():g}; download it again")
    whole = np.round(values).astype(np.int64)
    if np.abs(values - whole).max() > WHOLE:
        raise UserError(
            f"{label_path}: label values are not whole numbers; use the file as downloaded"
        )
    return image.astype(np.float32), whole, affine


def refuse_unknown(path: Path, label: np.ndarray, known: Sequence[int]) -> None:
    """Refuse label values other than 0 and the known ones, and labels that are empty.

    Raises:
        UserError: names the file and the first such value.
    """
    values = set(np.unique(label).tolist()) - {0}
    if not values:
        raise UserError(f"{path}: no voxel is labelled; download it again")
    if unknown := sorted(values - set(known)):
        raise UserError(
            f"{path}: label value {unknown[0]} belongs to no organ (0, "
            f"{', '.join(map(str, known))}); the file is of another dataset or was prepared before"
        )
