"""One NIfTI volume read or written: the only place that knows NIfTI's own axis order."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage

from fsmis.errors import UserError
from fsmis.files import write_atomic

NIFTI = (".nii", ".nii.gz")
GZIP_MAGIC = b"\x1f\x8b"
# What a header says of where a volume lies.
PLACE = (
    *("pixdim", "xyzt_units", "qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "sform_code", "srow_x", "srow_y", "srow_z"),
)
GZIP_LEVEL = 1  # as nibabel: higher ones take long and save little


def read_volume(path: Path | str) -> tuple[np.ndarray, tuple[float, float, float], np.ndarray]:
    """Read a volume as axial slices in the order in which they are stored.

    Args:
        path: ``.nii`` or ``.nii.gz``; 3-D, 2-D (read as one slice), or 4-D whose last axis is 1.

    Returns:
        See ``voxels_of``.

    Raises:
        UserError: the file is missing, empty, truncated, not what its name says, or as
            ``voxels_of``.
    """
    return voxels_of(load_image(Path(path)), str(path))


def load_image(path: Path) -> nib.Nifti1Image:
    """A NIfTI file with its voxels still on the disk.

    Raises:
        UserError: the file is missing, empty or not what its name says.
    """
    _check_file(path)
    with _explained(str(path)):
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            raise ImageFileError(f"it is {type(image).__name__}")
    return image


def voxels_of(
    image: SpatialImage, name: str
) -> tuple[np.ndarray, tuple[float, float, float], np.ndarray]:
    """The voxels of a nibabel image as axial slices in the order in which they are stored.

    Args:
        image: 3-D, 2-D (read as one slice), or 4-D whose last axis is 1.
        name: in messages.

    Returns:
        array [Z, H, W] (NIfTI's (x, y, z) transposed; the file's dtype, or float where the header
        scales the values), spacing in mm (z, y, x), affine float64 [4, 4] in (x, y, z) order.

    Raises:
        UserError: it is truncated, not a single volume of real numbers, holds NaN or infinity, or
            its geometry is unusable.
    """
    if image.affine is None:
        raise UserError(f"{name}: it has no affine; make the image with one")
    with _explained(name):
        data = np.asanyarray(image.dataobj)
        affine = np.asarray(image.affine, dtype=np.float64)
    array = as_slices(name, data)
    x, y, z = (float(size) for size in voxel_sizes(affine))
    if not np.isfinite(affine).all() or min(x, y, z) <= 0:
        raise UserError(
            f"{name}: voxel size {x:g} x {y:g} x {z:g} mm is not usable; repair the header's affine"
        )
    return array, (z, y, x), affine


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """nibabel's errors in the words of a user."""
    try:
        yield
    except HeaderDataError as error:
        raise UserError(
            f"{name}: the header is broken ({error}); convert the file again or repair its qform"
        ) from error
    except ImageFileError as error:
        raise UserError(f"{name}: not a NIfTI file ({error}); convert it to .nii.gz") from error
    except (EOFError, OSError, ValueError, OverflowError, MemoryError, zlib.error) as error:
        # nibabel's reasons may span lines
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name}: cannot be read, probably truncated ({reason}); copy or download it again"
        ) from error


def nifti_of(
    array: np.ndarray, affine: np.ndarray, like: nib.Nifti1Header | None = None
) -> nib.Nifti1Image:
    """An array [Z, H, W] as a NIfTI image.

    Args:
        array: of a dtype that NIfTI stores.
        affine: [4, 4] of the (x, y, z) order, as ``read_volume`` returns it.
        like: of a volume of the same grid, says where it lies, in both matrices and both codes, so
            that every program places the two alike; ``affine`` is not used then.
    """
    voxels = np.ascontiguousarray(array.T)
    if like is None:
        image = nib.Nifti1Image(voxels, affine, dtype=array.dtype)
        image.header.set_xyzt_units("mm")
        return image
    header: Any = nib.Nifti1Header()
    source: Any = like
    for name in PLACE:
        header[name] = source[name]
    header.set_data_shape(voxels.shape)  # where both codes are 0, the place depends on it
    return nib.Nifti1Image(voxels, header.get_best_affine(), header, dtype=array.dtype)


def write_volume(
    path: Path | str, array: np.ndarray, affine: np.ndarray, like: nib.Nifti1Header | None = None
) -> None:
    """Write an array [Z, H, W] as NIfTI, whole or not at all, the same bytes for the same array.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        array: see ``nifti_of``.
        affine: see ``nifti_of``.
        like: see ``nifti_of``.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    content = nifti_of(array, affine, like).to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, GZIP_LEVEL, mtime=0)
    write_atomic(path, content)


def write_mask(path: Path | str, mask: np.ndarray, affine: np.ndarray) -> None:
    """Write a mask or label map [Z, H, W], values 0..255, as uint8; see ``write_volume``."""
    write_volume(path, mask.astype(np.uint8), affine)


def _check_file(path: Path) -> None:
    """Refuse what nibabel would report in terms of bytes and codecs."""
    if not path.name.endswith(NIFTI):
        raise UserError(f"{path}: the name must end in .nii or .nii.gz")
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); check the path") from error
    if not start:
        raise UserError(f"{path}: empty file (0 bytes); copy or download it again")
    gzipped = start == GZIP_MAGIC
    if path.name.endswith(".gz") and not gzipped:
        raise UserError(
            f"{path}: not gzip data in spite of its name; rename it to .nii if it is plain NIfTI, "
            "otherwise download it again"
        )
    if not path.name.endswith(".gz") and gzipped:
        raise UserError(f"{path}: gzip data in spite of its name; rename it to .nii.gz")


def as_slices(name: str, data: np.ndarray) -> np.ndarray:
    """Bring an array (x, y, z) to [Z, H, W] and refuse what is not one finite volume."""
    if data.dtype.kind not in "iufb":
        raise UserError(
            f"{name}: voxels of type {data.dtype} are not grey values; export one channel"
        )
    if data.ndim > 3 and set(data.shape[3:]) == {1}:
        data = data.reshape(data.shape[:3])
    if data.ndim == 2:
        data = data[:, :, np.newaxis]
    if data.ndim != 3 or data.size == 0:
        raise UserError(
            f"{name}: shape {data.shape} is not one 3-D volume; export one volume a file"
        )
    invalid = int(data.size - np.isfinite(data).sum())
    if invalid:
        raise UserError(
            f"{name}: {invalid} of {data.size} voxels are NaN or infinite; export the volume again "
            "or replace them"
        )
    return data.T


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
