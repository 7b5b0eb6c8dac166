"""Label maps that were made elsewhere, scored like the answer of any method."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform

from fsmis.data.dataset import Scan
from fsmis.data.nifti import NIFTI, read_volume
from fsmis.data.protocol import Episode
from fsmis.errors import ScanError, UserError
from fsmis.methods import Method

OF_FOLD = re.compile(r"fold[0-9]+_scan")  # how the name of a map of one fold begins
OUTSIDE = -1  # in place of a label, where a map does not reach


class Predictions(Method):
    """A folder of NIfTI label maps, one for each query scan, such as nnU-Net's output.

    The name of a map ends with the id of its scan (``36.nii.gz``, ``case_036.nii``, as the
    predictions of a run do); ``fold0_scan36.nii.gz`` is that of fold 0 alone, made from its
    support. A map may have any orientation, voxel size and field of view: each voxel of
    the scan takes the label of the map's voxel that is nearest in mm.

    Args:
        predictions: the folder.
        labels: value of each organ in the maps.
        other_labels: further values that may occur, as of organs that are not scored.
        outside: largest part, 0 to 1, of the scan's voxels with a signal that may lie beyond the
            field of view of a map; they count as background, as padding does.

    Raises:
        UserError: no such folder, or no NIfTI file in it.
    """

    def __init__(
        self,
        predictions: str | None,
        labels: Mapping[str, int],
        other_labels: Sequence[int],
        outside: float,
    ) -> None:
        if predictions is None:
            raise UserError("predictions=null: give the folder of the label maps, predictions=DIR")
        folder = Path(predictions).expanduser()
        if not folder.is_dir():
            raise UserError(f"predictions={predictions}: no such folder; give that of label maps")
        self.folder = folder
        self.files = sorted(p for p in folder.iterdir() if p.name.endswith(NIFTI))
        if not self.files:
            raise UserError(f"predictions={predictions}: no NIfTI file (.nii, .nii.gz) in it")
        self.labels = {organ: int(value) for organ, value in labels.items()}
        self.known = {0, *self.labels.values(), *map(int, other_labels)}
        self.outside = outside

    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """See ``Method.segment``.

        Raises:
            ScanError: there is no map of the scan, or several, or it does not fit.
        """
        path = self.file_of(episode.query.id, episode.fold)
        try:
            labels = self._on_scan(path, episode.query)
        except UserError as error:
            raise ScanError(str(error)) from error
        return {
            organ: labels[task.query_slices] == self.labels[organ]
            for organ, task in episode.organs.items()
        }

    def file_of(self, scan_id: str, fold: int) -> Path:
        """The map of a scan, that of the fold where there is one and never that of another.

        Raises:
            ScanError: there is none, or there are several.
        """
        of_fold = [path for path in self.files if _stem(path) == f"fold{fold}_scan{scan_id}"]
        of_any = [path for path in self.files if not OF_FOLD.match(path.name)]
        found = of_fold or [path for path in of_any if _is_of(_stem(path), scan_id)]
        if not found:
            raise ScanError(
                f"{self.folder}: no label map of scan {scan_id} in fold {fold}; add one whose name "
                f"ends with the id, as {scan_id}.nii.gz"
            )
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ScanError(f"{self.folder}: {names} are all of scan {scan_id}; keep one of them")
        return found[0]

    def _on_scan(self, path: Path, scan: Scan) -> np.ndarray:
        """The labels of a map on the voxels of a scan, int32 ``[Z, H, W]``.

        Raises:
            UserError: the file cannot be read, a value is no label, or it does not cover the scan.
        """
        stored, _, affine = read_volume(path)
        values = np.unique(stored)
        unknown = [value for value in values.tolist() if value not in self.known]
        if unknown:
            named = ", ".join(f"{value} {organ}" for organ, value in self.labels.items())
            raise UserError(
                f"{path}: value {unknown[0]:g} is no label (0 background, {named}); set "
                "method.labels, or method.other_labels for organs that are not scored"
            )
        if np.linalg.matrix_rank(affine) < 4:
            raise UserError(f"{path}: the affine's axes are not independent; repair the header")
        to_stored = np.linalg.inv(affine) @ scan.affine  # voxel (x, y, z) to voxel (x, y, z)
        labels = affine_transform(
            stored.T.astype(np.int32),
            to_stored[:3, :3],
            to_stored[:3, 3],
            output_shape=scan.image.T.shape,
            order=0,
            mode="grid-constant",  # a voxel reaches half a voxel beyond its centre
            cval=OUTSIDE,
        ).T
        signal = scan.image > 0
        lost = float((signal & (labels == OUTSIDE)).sum() / max(1, signal.sum()))
        if lost > self.outside:
            raise UserError(
                f"{path}: {100 * lost:.0f} % of scan {scan.id} lie beyond it, by the affines of "
                "both; write it in the scan's geometry, or that of the whole scan it was cut from"
            )
        return labels


def _stem(path: Path) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path.name)


def _is_of(stem: str, scan_id: str) -> bool:
    """Whether a name ends with an id: as a whole number, whatever its zeros, or as a word."""
    if scan_id.isdecimal():
        number = re.search(r"[0-9]+$", stem)
        return number is not None and int(number[0]) == int(scan_id)
    return re.search(rf"(^|[^0-9a-zA-Z]){re.escape(scan_id)}$", stem) is not None
