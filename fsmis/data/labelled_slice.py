"""The one labelled slice that a user gives: an image, a mask beside it, and which slice counts."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from fsmis.data.geometry import AxialVolume
from fsmis.data.nifti import read_volume
from fsmis.errors import UserError

SAME_PLACE = 0.1  # fraction of a voxel by which a mask's corners may lie off the image's
SAME_VALUE = 0.01  # as far from a whole number a label value may be, from scaling in the header
SAME_VOXEL = 0.01  # fraction of a voxel by which a slice may lie off the image's grid


@dataclass(frozen=True, eq=False)
class LabelledSlice:
    """One axial slice of a volume with its labels.

    Attributes:
        volume: the whole support volume; a single slice is one too.
        position: slice of ``volume.pixels``.
        stored_position: the same slice counted as in the file, along its axial axis.
        labels: int64 [H, W], the label values of the slice, 0 for background.
        elsewhere: label values that occur in other slices of the mask alone, ascending.
    """

    volume: AxialVolume
    position: int
    stored_position: int
    labels: np.ndarray
    elsewhere: list[int]

    @property
    def values(self) -> list[int]:
        """Label values of the slice, from the largest area to the smallest."""
        values, areas = np.unique(self.labels[self.labels > 0], return_counts=True)
        return [int(value) for value in values[np.argsort(-areas, kind="stable")]]


def read_axial(path: Path) -> AxialVolume:
    """Read a volume as axial slices.

    Raises:
        UserError: as ``read_volume``; or the axial slices are but a line of pixels.
    """
    pixels, _, affine = read_volume(path)
    try:
        volume = AxialVolume.turn(pixels, affine)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if min(volume.pixels.shape[1:]) < 2:
        raise UserError(
            f"{path}: its axial slices are {volume.pixels.shape[1]} x {volume.pixels.shape[2]} "
            "pixels; give a volume with axial slices, or one axial slice"
        )
    return volume


def read_labelled_slice(image_path: Path, mask_path: Path, index: int | None) -> LabelledSlice:
    """Read the support.

    Args:
        image_path: a volume, or a single slice.
        mask_path: labels of the same shape, or of one slice of it.
        index: slice that counts, from 0 along the axial axis of the image file as it is stored;
            None for the one with the largest labelled area.

    Raises:
        UserError: a file cannot be used, or the slice holds no label.
    """
    image, mask = read_axial(image_path), read_axial(mask_path)
    labels = _whole_labels(mask_path, mask.pixels)
    values = np.unique(labels)
    _require_same_slices(image_path, image, mask_path, mask)
    n_slices = len(image.pixels)
    if index is not None and not 0 <= index < n_slices:
        raise UserError(f"--support-slice {index}: {image_path} has slices 0 to {n_slices - 1}")

    if len(labels) == n_slices:
        areas = np.count_nonzero(labels, axis=(1, 2))
        position = int(areas.argmax()) if index is None else image.axial_slice(index)
        labelled = sorted(image.axial_slice(int(z)) for z in np.flatnonzero(areas))
        labels = labels[position]
    else:
        position = image.axial_slice(index) if index is not None else _place(mask_path, mask, image)
        labels, labelled = labels[0], []
    stored_position = image.axial_slice(position)
    if not labels.any():
        if index is None or not labelled:
            raise UserError(
                f"{mask_path}: the mask is empty, every pixel is 0; draw at least one organ"
            )
        raise UserError(
            f"{mask_path}: no label in slice {stored_position}; labelled slices: "
            f"{', '.join(map(str, labelled))}"
        )
    elsewhere = np.setdiff1d(values, [0, *np.unique(labels)]).tolist()
    return LabelledSlice(image, position, stored_position, labels, elsewhere)


def _whole_labels(path: Path, pixels: np.ndarray) -> np.ndarray:
    labels = np.rint(pixels).astype(np.int64)
    fractional = np.abs(pixels - labels) > SAME_VALUE
    if fractional.any():
        raise UserError(
            f"{path}: label value {pixels[fractional][0]:g} is not a whole number; "
            "export the mask as integers, resampled with nearest neighbour"
        )
    limit = np.iinfo(np.uint16).max
    if labels.min() < 0 or labels.max() > limit:
        raise UserError(
            f"{path}: label values {labels.min()} to {labels.max()} are not within 0 to {limit}"
        )
    return labels


def _require_same_slices(
    image_path: Path, image: AxialVolume, mask_path: Path, mask: AxialVolume
) -> None:
    """Refuse a mask that does not lie on the image, or on one slice of it."""
    single = len(mask.pixels) == 1
    if mask.pixels.shape[1:] != image.pixels.shape[1:] or not (
        single or len(mask.pixels) == len(image.pixels)
    ):
        raise UserError(
            f"{mask_path}: shape {mask.pixels.shape} (axial, z y x) differs from "
            f"{image.pixels.shape} of {image_path}; draw the mask on that image"
        )
    corners = np.array(list(product(*([0, n - 1] for n in mask.pixels.shape[::-1]))))
    moved = mask.affine - image.affine
    # a single slice tells its thickness and place in many ways, or not at all
    offset = 0 if single else moved[:3, 3]
    away = np.linalg.norm(corners @ moved[:3, :3].T + offset, axis=1).max()
    allowed = SAME_PLACE * min(image.spacing)
    if away > allowed:
        raise UserError(
            f"{mask_path}: lies up to {away:.3g} mm off {image_path}, allowed are {allowed:.3g} mm "
            f"({SAME_PLACE:g} of a voxel); draw the mask on that image and keep its geometry"
        )


def _place(path: Path, mask: AxialVolume, image: AxialVolume) -> int:
    """Slice of the image that a single-slice mask lies on, by their affines."""
    voxel = np.linalg.solve(image.affine, mask.affine[:, 3])[:3]
    position = int(np.rint(voxel[2]))
    away = np.abs(voxel - [0, 0, position]).max()
    if away > SAME_VOXEL or not 0 <= position < len(image.pixels):
        raise UserError(
            f"{path}: its affine does not place it on a slice of the image; give --support-slice"
        )
    return position
