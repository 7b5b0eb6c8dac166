"""The labelled slices that a user gives: an image, a mask beside it, and which slices count."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from fsmis.data.geometry import AxialVolume
from fsmis.data.volume import Volume
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
        elsewhere: label values of the mask that no slice stands for, ascending.
    """

    volume: AxialVolume
    position: int
    stored_position: int
    labels: np.ndarray
    elsewhere: list[int]

    @property
    def values(self) -> list[int]:
        """Label values of the slice, ascending."""
        return np.unique(self.labels[self.labels > 0]).tolist()


def labelled_slices(
    image: Volume,
    mask: Volume,
    wanted: Sequence[int],
    for_each_label: int | None,
    shown: float,
) -> list[LabelledSlice]:
    """The slices of one support volume that count, from the feet to the head.

    Args:
        image: a volume, or a single slice.
        mask: labels of the same shape, or of one slice of it.
        wanted: slices that count, from 0 along the axial axis of the image file as it is stored.
        for_each_label: where none are wanted, so many slices of each label, the middles of equal
            parts of its extent; None for as few slices as show every label.
        shown: of a label's largest area, what a slice holds at least to show it.

    Raises:
        UserError: the mask does not fit the image, a slice is not there or holds no label.
    """
    volume = image.axial
    labels = _whole_labels(mask.name, mask.axial.pixels)
    _require_same_slices(image, mask)
    n_slices = len(volume.pixels)
    for index in wanted:
        if not 0 <= index < n_slices:
            raise UserError(f"--support-slice {index}: {image.name} has slices 0 to {n_slices - 1}")
    if not labels.any():
        raise UserError(
            f"{mask.name}: the mask is empty, every pixel is 0; draw at least one organ"
        )
    if len(labels) == n_slices:
        positions = [volume.axial_slice(index) for index in dict.fromkeys(wanted)]
        at = dict(zip(range(n_slices), labels, strict=True))
    else:
        if len(wanted) > 1:
            raise UserError(f"{mask.name}: a mask of one slice lies on one; give --support-slice K")
        if not wanted and isinstance(mask.given, np.ndarray):  # which tells no place
            raise UserError(f"{mask.name}: an array of one slice; say which by support_slice")
        place = volume.axial_slice(wanted[0]) if wanted else _place(mask.name, mask.axial, volume)
        positions, at = [place], {place: labels[0]}
    if not positions:
        if for_each_label is None:
            at = _showing_all(labels, shown)
        else:
            at = _for_each_label(labels, for_each_label)
        positions = list(at)
    for position in positions:
        if not at[position].any():
            labelled = sorted(volume.axial_slice(int(z)) for z in _filled(labels))
            raise UserError(
                f"{mask.name}: no label in slice {volume.axial_slice(position)}; labelled slices: "
                f"{', '.join(map(str, labelled))}"
            )
    used = np.unique([at[position] for position in positions])
    elsewhere = np.setdiff1d(labels, [0, *used]).tolist()
    return [
        LabelledSlice(volume, z, volume.axial_slice(z), at[z], elsewhere) for z in sorted(positions)
    ]


def _showing_all(labels: np.ndarray, shown: float) -> dict[int, np.ndarray]:
    """Position -> labels [H, W] that the slice shows and no slice before it: that with the largest
    area of what is left comes first."""
    values = np.unique(labels[labels > 0])
    areas = np.stack([np.count_nonzero(labels == value, axis=(1, 2)) for value in values])
    shows = (areas > 0) & (areas >= shown * areas.max(axis=1, keepdims=True))
    left = np.ones(len(values), bool)
    at: dict[int, np.ndarray] = {}
    while left.any():
        z = int(np.where(shows, areas, 0)[left].sum(axis=0).argmax())
        at[z] = np.where(np.isin(labels[z], values[left & shows[:, z]]), labels[z], 0)
        left &= ~shows[:, z]
    return at


def _for_each_label(labels: np.ndarray, count: int) -> dict[int, np.ndarray]:
    """Position -> labels [H, W], each label in ``count`` slices of its own and no others."""
    at: dict[int, np.ndarray] = {}
    for value in np.unique(labels[labels > 0]):
        held = _filled(labels == value)
        for part in np.array_split(held, min(count, len(held))):
            z = int(part[len(part) // 2])
            mask = labels[z] == value
            at[z] = np.where(mask, value, at.get(z, np.zeros_like(labels[z])))
    return at


def _filled(labels: np.ndarray) -> np.ndarray:
    return np.flatnonzero(labels.any(axis=(1, 2)))


def _whole_labels(name: str, pixels: np.ndarray) -> np.ndarray:
    labels = np.rint(pixels).astype(np.int64)
    fractional = np.abs(pixels - labels) > SAME_VALUE
    if fractional.any():
        raise UserError(
            f"{name}: label value {pixels[fractional][0]:g} is not a whole number; "
            "export the mask as integers, resampled with nearest neighbour"
        )
    limit = np.iinfo(np.uint16).max
    if labels.min() < 0 or labels.max() > limit:
        raise UserError(
            f"{name}: label values {labels.min()} to {labels.max()} are not within 0 to {limit}"
        )
    return labels


def _require_same_slices(of_image: Volume, of_mask: Volume) -> None:
    """Refuse a mask that does not lie on the image, or on one slice of it."""
    image, mask = of_image.axial, of_mask.axial
    single = len(mask.pixels) == 1
    if mask.pixels.shape[1:] != image.pixels.shape[1:] or not (
        single or len(mask.pixels) == len(image.pixels)
    ):
        raise UserError(
            f"{of_mask.name}: shape {mask.pixels.shape} (axial, z y x) differs from "
            f"{image.pixels.shape} of {of_image.name}; draw the mask on that image"
        )
    corners = np.array(list(product(*([0, n - 1] for n in mask.pixels.shape[::-1]))))
    moved = mask.affine - image.affine
    # a single slice tells its thickness and place in many ways, or not at all
    offset = 0 if single else moved[:3, 3]
    away = np.linalg.norm(corners @ moved[:3, :3].T + offset, axis=1).max()
    allowed = SAME_PLACE * min(image.spacing)
    if away > allowed:
        raise UserError(
            f"{of_mask.name}: lies up to {away:.3g} mm off {of_image.name}, allowed are "
            f"{allowed:.3g} mm ({SAME_PLACE:g} of a voxel); draw the mask on that image and keep "
            "its geometry"
        )


def _place(name: str, mask: AxialVolume, image: AxialVolume) -> int:
    """Slice of the image that a single-slice mask lies on, by their affines."""
    voxel = np.linalg.solve(image.affine, mask.affine[:, 3])[:3]
    position = int(np.rint(voxel[2]))
    away = np.abs(voxel - [0, 0, position]).max()
    if away > SAME_VOXEL or not 0 <= position < len(image.pixels):
        raise UserError(
            f"{name}: its affine does not place it on a slice of the image; give --support-slice"
        )
    return position
