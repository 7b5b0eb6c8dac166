"""Raw scans that are one NIfTI file each, with a label file beside or in another folder."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fsmis.data.nifti import NIFTI
from fsmis.errors import UserError
from fsmis.files import walked


def nifti_files(root: Path) -> list[Path]:
    """Sorted NIfTI files anywhere below a folder, in folders that are links too."""
    files = (folder / name for folder, names in walked(root) for name in names)
    return sorted(path for path in files if path.name.endswith(NIFTI))


def find_pairs(
    root: Path, image: re.Pattern[str], label: re.Pattern[str]
) -> dict[str, tuple[Path, ...]]:
    """Image and label files anywhere below a folder, as far as they exist, by scan id.

    The patterns match whole file names; their first group is the id. UserError for doubled files.
    """
    found: dict[str, dict[bool, Path]] = {}
    for path in nifti_files(root):
        for pattern in (image, label):
            if match := pattern.fullmatch(path.name):
                pair = found.setdefault(str(int(match[1])), {})
                other = pair.setdefault(pattern is label, path)
                if other != path:
                    raise UserError(f"{path}: the same scan as {other}; remove one of them")
    return {i: tuple(pair[key] for key in sorted(pair)) for i, pair in found.items()}


def complete_pair(files: Sequence[Path], label: re.Pattern[str]) -> tuple[Path, Path]:
    """Image and label of what ``find_pairs`` found of a scan; UserError where one is missing."""
    if len(files) != 2:
        missing = "image" if label.fullmatch(files[0].name) else "label"
        raise UserError(f"{files[0]}: its {missing} is not there; complete the download")
    image_path, label_path = files
    return image_path, label_path


def refuse_constant(path: Path, image: np.ndarray) -> None:
    """Refuse (UserError) an image without any contrast."""
    if image.min() == image.max():
        raise UserError(f"{path}: every voxel is {image.min():g}; download it again")


def refuse_unknown(path: Path, label: np.ndarray, known: Sequence[int]) -> None:
    """Refuse (UserError) labels that are empty or have values other than 0 and the known ones."""
    values = set(np.unique(label).tolist()) - {0}
    if not values:
        raise UserError(f"{path}: no voxel is labelled; download it again")
    if unknown := sorted(values - set(known)):
        raise UserError(
            f"{path}: label value {unknown[0]} belongs to no organ (0, "
            f"{', '.join(map(str, known))}); the file is of another dataset or was prepared before"
        )
