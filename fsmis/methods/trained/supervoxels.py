"""Pseudo-labels: segments of similar intensity, which training takes for organs.

SSL-ALPNet (Ouyang et al., ECCV 2020, section 3.3) cuts each slice into superpixels by Felzenszwalb
and Huttenlocher (IJCV 2004). ADNet (Hansen et al., MedIA 2022, section 3.2) uses a 3D version;
here, superpixels of successive slices that overlap by more than half form one supervoxel instead.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.segmentation import felzenszwalb

from fsmis.data.dataset import Scan
from fsmis.data.nifti import read_volume
from fsmis.errors import UserError
from fsmis.files import sha256, write_atomic
from fsmis.source import source_hash


class Supervoxels:
    """Cut scans into supervoxels, or read given ones; UserError where a setting cannot be used.

    Args:
        scale: of Felzenszwalb's algorithm; higher values make larger segments.
        sigma: of the Gaussian that smooths a slice first, pixels.
        min_size: pixels of the smallest segment in a slice.
        overlap: superpixels of successive slices with a higher IoU are joined; 0.5 or more.
        min_intensity: segments with a lower mean, in [0, 1], are taken for air and dropped.
        files: folder of given maps ``superpix-MIDDLE_<scan>.nii.gz``; None: compute.
    """

    def __init__(
        self,
        scale: float,
        sigma: float,
        min_size: int,
        overlap: float,
        min_intensity: float,
        files: str | None,
    ) -> None:
        if not 0.5 <= overlap <= 1:
            raise UserError(f"supervoxels.overlap={overlap}: choose 0.5 to 1")
        self.files = None if files is None else Path(files).expanduser()
        if self.files is not None and not self.files.is_dir():
            raise UserError(f"supervoxels.files={files}: no such folder; null computes them")
        self.scale, self.sigma, self.min_size = scale, sigma, min_size
        self.overlap, self.min_intensity = overlap, min_intensity
        self._settings = (scale, sigma, min_size, overlap, min_intensity)

    def of(self, scan: Scan, cache: Path) -> np.ndarray:
        """Supervoxels int32 [Z, H, W] of a scan; 0 is none, ids are unique in the scan.

        ``cache`` keeps computed maps, named by the contents of image, settings and code. Raises
        UserError where a given map is missing or of another shape.
        """
        if self.files is not None:
            path = _file(self.files, scan.id)
            given, _, _ = read_volume(path)
            if given.shape != scan.image.shape:
                raise UserError(
                    f"{path}: shape {given.shape} differs from {scan.image.shape} of the image; "
                    "take the supervoxels of this very scan; setting 2 has to compute them "
                    "(supervoxels.files=null)"
                )
            return self._without_small_and_dark(given.astype(np.int32), scan.image)
        path = cache / f"{scan.id}_{self._key(scan.image)}.npz"
        segments = _read(path)
        if segments is None:
            segments = self._compute(scan.image)
            content = io.BytesIO()
            np.savez_compressed(content, segments=segments)
            write_atomic(path, content.getvalue())
        return segments

    def identity(self, scan_ids: Sequence[str]) -> list[str | float]:
        """What the maps of some scans depend on besides their images."""
        given = self.files
        digests = [] if given is None else [sha256(_file(given, scan_id)) for scan_id in scan_ids]
        return [*self._settings, *digests]

    def _key(self, image: np.ndarray) -> str:
        known = source_hash(Supervoxels), self._settings, image.shape
        digest = hashlib.sha256(repr(known).encode())
        digest.update(np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()[:16]

    def _compute(self, image: np.ndarray) -> np.ndarray:
        slices = [
            felzenszwalb(slice_, scale=self.scale, sigma=self.sigma, min_size=self.min_size)
            for slice_ in image
        ]
        firsts = np.cumsum([1] + [segments.max() + 1 for segments in slices])
        superpixels = np.stack(slices).astype(np.int32) + firsts[:-1, None, None].astype(np.int32)
        return _joined(self._without_small_and_dark(superpixels, image), self.overlap)

    def _without_small_and_dark(self, segments: np.ndarray, image: np.ndarray) -> np.ndarray:
        kept = segments.copy()
        for slice_, pixels in zip(kept, image, strict=True):
            ids, index, counts = np.unique(slice_, return_inverse=True, return_counts=True)
            means = np.bincount(index.ravel(), pixels.ravel()) / counts
            ids[(counts < self.min_size) | (means < self.min_intensity)] = 0
            slice_[:] = ids[index.reshape(slice_.shape)]
        return kept


def _file(folder: Path, scan_id: str) -> Path:
    return folder / f"superpix-MIDDLE_{scan_id}.nii.gz"


def _joined(superpixels: np.ndarray, overlap: float) -> np.ndarray:
    """Give superpixels of successive slices one id where their IoU exceeds ``overlap``.

    Above 0.5 a superpixel has at most one partner in a slice, so chains do not branch.
    """
    lower, upper = superpixels[:-1].ravel(), superpixels[1:].ravel()
    both = (lower > 0) & (upper > 0)
    pairs, common = np.unique(np.stack([lower[both], upper[both]]), axis=1, return_counts=True)
    size = np.bincount(superpixels.ravel())
    iou = common / (size[pairs[0]] + size[pairs[1]] - common)
    below, above = pairs[:, iou > overlap]
    graph = coo_matrix((np.ones(len(below)), (below, above)), shape=(len(size), len(size)))
    _, component = connected_components(graph, directed=False)
    joined = component.astype(np.int32)[superpixels] + 1
    joined[superpixels == 0] = 0
    return joined


def _read(path: Path) -> np.ndarray | None:
    try:
        with np.load(path) as stored:
            return stored["segments"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
