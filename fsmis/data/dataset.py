"""Prepared scans on disk: ``image_<id>.nii.gz`` with ``label_<id>.nii.gz``, read one at a time."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fsmis.data.expectation import STORAGE_MM, Expectation
from fsmis.data.nifti import read_pair, read_volume
from fsmis.errors import UserError
from fsmis.files import counted, require_name, sha256

FILE_NAME = re.compile(r"(image|label)_(.+?)\.nii(\.gz)?")
MOST_LABELS = 255  # prepared labels are uint8
DEFAULT_FOLDS = 5  # of the field's benchmarks


@dataclass(frozen=True, eq=False)
class Scan:
    """One volume of axial slices.

    Attributes:
        id: what the file name ends with, a number without leading zeros, e.g. ``"36"``.
        image: float32 [Z, H, W] in [0, 1], scaled per volume (``scale_intensities``).
        label: uint8 [Z, H, W] of prepared label ids, 0 for background; None where unknown.
        spacing: voxel size in mm, (z, y, x).
        affine: float64 [4, 4] of the NIfTI file, in (x, y, z) order, to write predictions back.
    """

    id: str
    image: np.ndarray
    label: np.ndarray | None
    spacing: tuple[float, float, float]
    affine: np.ndarray


def scale_intensities(volume: np.ndarray, percentiles: Sequence[float]) -> np.ndarray:
    """Clip a volume at two of its percentiles and map them to 0 and 1; float32, any shape.

    Where the percentiles coincide the extremes take their place; a constant volume becomes 0.
    """
    volume = volume.astype(np.float32)
    low, high = np.percentile(volume, percentiles).astype(np.float32)
    if low == high:
        low, high = volume.min(), volume.max()
    if low == high:
        return np.zeros_like(volume)
    return np.clip((volume - low) / (high - low), 0, 1)


def require_percentiles(percentiles: Sequence[float]) -> None:
    """Refuse what ``scale_intensities`` cannot use.

    Raises:
        UserError: not two ascending numbers from 0 to 100.
    """
    if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise UserError(f"percentiles={percentiles}: give two from 0 to 100, the lower one first")


def scan_id_of(path: Path, name: str) -> str:
    """Id of a scan, of the part of its file's name that says which it is.

    Raises:
        UserError: it is no name for files.
    """
    require_name(f"{path}: scan", name)
    return str(int(name)) if re.fullmatch("[0-9]+", name) else name


class Dataset:
    """A folder of prepared scans, the organs to score, and where the folds start.

    Construction lists the folder and checks that it is complete; voxels are read by ``load``.

        from fsmis import Dataset
        dataset = Dataset("mine", "data/mine", organs={"liver": 1, "spleen": 4})
        scan = dataset.load("8")  # image float32 [Z, H, W] in [0, 1], label uint8 [Z, H, W]

    Attributes:
        name: name of the dataset in tables, e.g. ``chaos_mri``.
        root: folder of the prepared files.
        organs: label id of every scored organ.
        scan_ids: ids of the scans, in the order of the numbers in them.
        fold_starts: positions in ``scan_ids`` at which the folds start, and the number of scans.
        percentiles: of a volume; become 0 and 1.
        expected: what its scans have in common (``fsmis.data.verify`` checks it).
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        organs: Mapping[str, int],
        unscored_labels: Sequence[int] = (),
        label_values: Mapping[int, int] = MappingProxyType({}),
        label_tolerance: float = 0.01,
        percentiles: Sequence[float] = (0.5, 99.5),
        fold_starts: Sequence[int] | int | None = None,
        source: str = "",
        expected: Expectation | None = None,
    ) -> None:
        """List the folder.

        Args:
            name: see the attributes, as for ``root`` and ``organs``.
            root: see the attributes.
            organs: see the attributes.
            unscored_labels: further label ids that may occur; not scored.
            label_values: prepared label id of every raw value that is accepted in place of it.
            label_tolerance: largest distance of a stored label value to a whole number.
            percentiles: see the attributes; two.
            fold_starts: see the attributes; a number N cuts the scans that are there in N folds,
                None in 5, or as many as there are scans where these are fewer.
            source: one sentence on where the data comes from and how it is prepared, for errors.
            expected: see the attributes; nothing by default.

        Raises:
            UserError: folder or files are missing, the number of scans is not that of the folds,
                ``percentiles`` are none, a name cannot be one of a folder, or a label id is out of
                range or there twice.
        """
        require_percentiles(percentiles)
        self.name = require_name("dataset.name", name)
        self.root = Path(root).expanduser()
        self.organs = {
            require_name("organ", str(organ)): int(value) for organ, value in organs.items()
        }
        if not self.organs:
            raise UserError(f"dataset.organs of {name}: none; name one or more, as {{liver: 1}}")
        self._unscored = {int(value) for value in unscored_labels}
        self._label_values = {int(raw): int(value) for raw, value in label_values.items()}
        self._require_label_ids()
        self._label_tolerance = label_tolerance
        self.percentiles = tuple(percentiles)
        self._source = source
        self.expected = expected or Expectation()
        self._images, self._labels = self._pairs()
        self.scan_ids = sorted(self._images, key=counted)
        self.fold_starts = self._fold_starts(fold_starts)

    def load(self, scan_id: str) -> Scan:
        """Read and check one scan.

        Raises:
            UserError: see ``read``.
        """
        image, label, spacing, affine = self.read(scan_id)
        return Scan(scan_id, scale_intensities(image, self.percentiles), label, spacing, affine)

    def read(
        self, scan_id: str
    ) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float], np.ndarray]:
        """One scan with its intensities as stored.

        Returns:
            image [Z, H, W], label uint8 [Z, H, W] of prepared ids, spacing in mm (z, y, x), affine.

        Raises:
            UserError: a file cannot be read, image and label differ in shape or geometry, or a
                label value belongs to no organ.
        """
        image_path, label_path = self.files(scan_id)
        image, label, spacing, affine = read_pair(
            image_path, label_path, geometry_mm=STORAGE_MM, label_tolerance=self._label_tolerance
        )
        return image, self._prepared_label(label_path, label), spacing, affine

    def load_image(self, scan_id: str) -> Scan:
        """Read one scan without its label, whose file is not opened.

        Raises:
            UserError: the image cannot be read.
        """
        image, spacing, affine = read_volume(self.files(scan_id)[0])
        return Scan(scan_id, scale_intensities(image, self.percentiles), None, spacing, affine)

    def files(self, scan_id: str) -> tuple[Path, Path]:
        """Image and label file of a scan.

        Raises:
            UserError: there is no such scan.
        """
        if scan_id not in self._images:
            raise UserError(
                f"{self.root}: no scan {scan_id} in {self.name}; there are {self._listed()}"
            )
        return self._images[scan_id], self._labels[scan_id]

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the names and contents of all image and label files."""
        total = hashlib.sha256()
        for scan_id in self.scan_ids:
            for path in self.files(scan_id):
                total.update(f"{path.name} {sha256(path)}\n".encode())
        return total.hexdigest()

    def _pairs(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Files of the images and of the labels by scan id; every scan has both."""
        layout = f"expected image_<id>.nii.gz and label_<id>.nii.gz there. {self._source}"
        if not self.root.is_dir():
            raise UserError(f"dataset.root={self.root}: no such folder for {self.name}; {layout}")
        files: dict[str, dict[str, Path]] = {"image": {}, "label": {}}
        for path in sorted(self.root.iterdir()):
            match = FILE_NAME.fullmatch(path.name)
            if match is None:
                continue
            kind, scan_id = match[1], scan_id_of(path, match[2])
            if scan_id in files[kind]:
                raise UserError(
                    f"{path}: scan {scan_id} is there twice, also as "
                    f"{files[kind][scan_id].name}; remove one"
                )
            files[kind][scan_id] = path
        images, labels = files["image"], files["label"]
        if not images and not labels:
            raise UserError(f"dataset.root={self.root}: no scan of {self.name}; {layout}")
        for scan_id in sorted(images.keys() ^ labels.keys(), key=counted):
            path = images.get(scan_id) or labels[scan_id]
            kinds = ("image", "label") if scan_id in images else ("label", "image")
            raise UserError(
                f"{path}: there is no {path.name.replace(*kinds)} beside it; add it or remove this "
                "file"
            )
        return images, labels

    def _fold_starts(self, wanted: Sequence[int] | int | None) -> list[int]:
        """Starts of the folds, checked against the scans that are there."""
        n_scans = len(self.scan_ids)
        if wanted is None:
            wanted = min(DEFAULT_FOLDS, n_scans)
        if isinstance(wanted, int):
            starts = [n_scans * fold // max(wanted, 1) for fold in range(wanted + 1)]
        else:
            starts = [int(start) for start in wanted]
        if len(starts) < 3 or starts[0] != 0 or min(np.diff(starts)) < 1:
            raise UserError(
                f"dataset.fold_starts={wanted}: {self.name} with {n_scans} scans needs two folds "
                "or more, from 0 upwards, each with a scan; choose other starts, or add scans"
            )
        if starts[-1] != n_scans:
            raise UserError(
                f"dataset.root={self.root}: {n_scans} scans ({self._listed()}), but the folds of "
                f"{self.name} are defined over {starts[-1]} and would shift; complete the data, or "
                f"set dataset.fold_starts={len(starts) - 1} for even folds of your own "
                "(not comparable with published numbers)"
            )
        return starts

    def _require_label_ids(self) -> None:
        """Refuse ids that a label map of uint8 cannot hold, and two organs of one id."""
        organs = list(self.organs.values())
        mapped = set(self._label_values.values()) - {0}  # which may become background
        for value in [*organs, *self._unscored, *mapped]:
            if not 1 <= value <= MOST_LABELS:
                raise UserError(
                    f"dataset {self.name}: label id {value} is not in 1 to {MOST_LABELS}; take "
                    "another, and list every stored value with its id in dataset.label_values, as "
                    f"{{1: 1, {value}: 2}}"
                )
        if len(set(organs)) < len(organs):
            raise UserError(f"dataset.organs of {self.name}: two organs have the same label id")

    def _prepared_label(self, path: Path, label: np.ndarray) -> np.ndarray:
        """Check the values of a label map and bring them to the prepared ids, uint8."""
        found = set(np.unique(label).tolist())
        if found & self._label_values.keys():
            if found - self._label_values.keys() - {0}:
                raise UserError(
                    f"{path}: label values {sorted(found)} mix raw and prepared ids, for "
                    "dataset.label_values lists some of them; list all, or prepare it again"
                )
            stored = label.copy()
            for raw, value in self._label_values.items():
                label[stored == raw] = value
            found = set(np.unique(label).tolist())
        unexpected = sorted(found - {0} - set(self.organs.values()) - self._unscored)
        if unexpected:
            known = ", ".join(f"{value} {organ}" for organ, value in self.organs.items())
            raise UserError(
                f"{path}: label value {unexpected[0]} belongs to no organ of {self.name} "
                f"(0 background, {known}); list it in unscored_labels if it is not to be scored, "
                "otherwise the data looks unprepared or of another dataset. "
                f"{self._source}"
            )
        return label.astype(np.uint8)

    def _listed(self) -> str:
        return ", ".join(self.scan_ids)
