"""A volume as a user gives it: a NIfTI file, a DICOM folder, a nibabel image or an array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TypeGuard

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from fsmis.data.dicom import read_series, series_files, write_segmentation
from fsmis.data.geometry import AxialVolume
from fsmis.data.nifti import NIFTI, as_slices, load_image, nifti_of, voxels_of, write_volume
from fsmis.errors import UserError
from fsmis.files import counted

Given = str | Path | SpatialImage | np.ndarray
DICOM_SEG = ".dcm"
GAP_TOLERANCE = 0.1  # by which a distance between the slices of a series may differ, relative


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume as axial slices, and what it takes to answer in kind.

    Attributes:
        name: of the file, or what stands for it in messages.
        axial: its voxels.
        given: what the user gave.
        header: of a NIfTI file or image, says where it lies; None for the others.
        slices: files of a DICOM series, in the order of the stored slices.
    """

    name: str
    axial: AxialVolume
    given: Given
    header: nib.Nifti1Header | None = None
    slices: list[Path] = field(default_factory=list)

    @classmethod
    def read(cls, given: Given, role: str, spacing: Sequence[float] | None = None) -> Volume:
        """Read what a user gave.

        Args:
            given: path of a NIfTI file or of a folder with one DICOM series; a nibabel image; or an
                array [Z, H, W] that lies as ``AxialVolume.pixels``.
            role: what it is to the user, for messages, such as ``query``.
            spacing: voxel size in mm (z, y, x) of an array; the others know theirs.

        Raises:
            UserError: it cannot be read or is not one volume of axial slices; an array has no
                spacing, or another kind is given one.
        """
        header: nib.Nifti1Header | None = None
        slices: list[Path] = []
        name = str(given) if isinstance(given, str | Path) else f"the {role}"
        if isinstance(given, np.ndarray) != (spacing is not None):
            raise UserError(
                f"{name}: give an array with its spacing, (z, y, x) in mm, and no spacing with a "
                "file or an image, which know their own"
            )
        if isinstance(given, np.ndarray):
            pixels, affine = as_slices(name, given.T), _affine_of(name, spacing)
        elif isinstance(given, SpatialImage):
            header = given.header if isinstance(given, nib.Nifti1Image) else None
            name = given.get_filename() or name
            pixels, _, affine = voxels_of(given, name)
        elif isinstance(given, str | Path):
            if Path(given).is_dir():
                files = series_files(Path(given))
                if not files:
                    raise UserError(
                        f"{name}: a folder without DICOM files; give one that holds the files of "
                        "one series, or a NIfTI file"
                    )
                pixels, affine, slices = read_series(files, GAP_TOLERANCE)
            else:
                image = load_image(Path(given))
                header = image.header
                pixels, _, affine = voxels_of(image, name)
        else:
            raise UserError(
                f"{name} is a {type(given).__name__}; give a path, a nibabel image or a NumPy array"
            )
        return cls(name, _as_axial(name, pixels, affine), given, header, slices)

    def in_kind(self, labels: np.ndarray) -> SpatialImage | np.ndarray:
        """Labels [Z, H, W] of ``axial`` as the volume was given: an array for an array, else a
        NIfTI image on the same grid."""
        stored = self.axial.turn_back(labels)
        if isinstance(self.given, np.ndarray):
            return stored.reshape(self.given.shape)
        return nifti_of(stored, self.axial.stored_affine, self.header)

    def require_output(self, path: Path, inputs: Sequence[Given] = ()) -> None:
        """Refuse, before any work, a file that labels of this volume cannot be written to.

        Raises:
            UserError: it is the volume itself or another input, or lies among the files of a DICOM
                series; its name ends otherwise than in ``.nii``, ``.nii.gz`` or ``.dcm``, the last
                for a volume that is no DICOM series, or without ``highdicom``.
        """
        require_other(path, [file for given in (self.given, *inputs) for file in _file_of(given)])
        if path.suffix == DICOM_SEG and not self.slices:
            raise UserError(
                f"{path}: a DICOM-SEG refers to the slices of a DICOM query, and {self.name} is "
                "none; choose a name that ends in .nii.gz"
            )
        if path.suffix == DICOM_SEG and find_spec("highdicom") is None:
            raise UserError(
                f'{path}: DICOM-SEG needs highdicom; pip install -e ".[dicom]", or choose .nii.gz'
            )
        if path.suffix != DICOM_SEG and not path.name.endswith(NIFTI):
            raise UserError(f"{path}: the name must end in .nii, .nii.gz or .dcm")

    def write(self, path: Path, labels: np.ndarray) -> None:
        """Write labels [Z, H, W] of ``axial``: ``.nii``, ``.nii.gz``, or ``.dcm`` for a DICOM-SEG.

        Raises:
            UserError: as ``require_output``, or the file cannot be written.
        """
        self.require_output(path)
        stored = self.axial.turn_back(labels)
        if path.suffix == DICOM_SEG:
            write_segmentation(path, stored, self.slices)
        else:
            write_volume(path, stored, self.axial.stored_affine, self.header)


def queries_in(folder: Path, others: Sequence[Path] = ()) -> dict[str, Path]:
    """The queries of a folder by name, in the order of the numbers in them: its NIfTI files, and
    its subfolders that hold a DICOM series, but those of ``others``, as supports and outputs.

    Raises:
        UserError: there is none, or two have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):  # as macOS leaves beside each file
            continue
        if any(other.exists() and path.samefile(other) for other in others):
            continue
        is_series = path.is_dir() and bool(series_files(path))
        if not is_series and not (path.is_file() and path.name.endswith(NIFTI)):
            continue
        name = path.name if is_series else path.name.removesuffix(".gz").removesuffix(".nii")
        if name in found:
            raise UserError(
                f"{path}: its output would have the name of that of {found[name].name}; rename one"
            )
        found[name] = path
    if not found:
        raise UserError(
            f"{folder}: no query in it; give a NIfTI file, a folder of them, a folder with a DICOM "
            "series, or a folder of such folders"
        )
    return dict(sorted(found.items(), key=lambda item: counted(item[0])))


def _is_path(given: object) -> TypeGuard[str | Path]:
    return isinstance(given, str | Path)


def _file_of(given: Given) -> list[str | Path]:
    """The file or folder that a volume was read from, if any."""
    if _is_path(given):
        return [given]
    name = given.get_filename() if isinstance(given, SpatialImage) else None
    return [] if name is None else [name]


def require_there(paths: Sequence[Path]) -> None:
    """Refuse, with UserError, a path that leads nowhere."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder; check the path")


def require_other(path: Path, inputs: Sequence[str | Path]) -> None:
    """Refuse, with UserError, an output that is one of the inputs, or among the files of one."""
    for given in filter(Path.exists, map(Path, inputs)):
        if path.exists() and path.samefile(given):
            raise UserError(f"{path}: this is an input; choose another name for the output")
        if path.parent.is_dir() and path.parent.samefile(given):
            raise UserError(
                f"{path}: lies in the folder of a DICOM series that is an input; choose another "
                "folder for the output"
            )


def require_target(
    option: str, path: Path, endings: tuple[str, ...], inputs: Sequence[Path]
) -> None:
    """Refuse, before any work and with UserError, a file that cannot be written or is an input."""
    if not path.name.endswith(endings):
        raise UserError(f"{option} {path}: the name must end in {' or '.join(endings)}")
    if not path.parent.is_dir() or path.is_dir():
        problem = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise UserError(f"{option} {path}: {problem}; choose another name")
    _require_writable(option, path.parent)
    require_other(path, inputs)


def require_folder(option: str, path: Path, query: Path) -> None:
    """The same of a folder that cannot be written or is that of the queries."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{option} {path}: is a file; {query} is a folder, so choose a folder")
    if not path.exists() and not path.parent.is_dir():
        raise UserError(f"{option} {path}: lies in a folder that does not exist; choose another")
    _require_writable(option, path if path.exists() else path.parent)
    if path.exists() and path.samefile(query):
        raise UserError(f"{option} {path}: the queries are there; choose another folder")


def _require_writable(option: str, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option} {folder}: the folder is not writable; choose another one")


def _as_axial(name: str, pixels: np.ndarray, affine: np.ndarray) -> AxialVolume:
    try:
        volume = AxialVolume.turn(pixels, affine)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if min(volume.pixels.shape[1:]) < 2:
        raise UserError(
            f"{name}: its axial slices are {volume.pixels.shape[1]} x {volume.pixels.shape[2]} "
            "pixels; give a volume with axial slices, or one axial slice"
        )
    return volume


def _affine_of(name: str, spacing: Sequence[float] | None) -> np.ndarray:
    """Of an array that lies as ``AxialVolume.pixels``."""
    mm = np.asarray(spacing, float)
    if mm.shape != (3,) or not np.isfinite(mm).all() or mm.min() <= 0:
        raise UserError(f"{name}: spacing={spacing}: give three sizes in mm above 0, (z, y, x)")
    return np.diag([-mm[2], mm[1], mm[0], 1.0])
