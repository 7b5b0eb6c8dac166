"""Episodes from pseudo-labels: supervoxels of a scan, and two views of a slice that both show them.

SSL-ALPNet (Ouyang et al., ECCV 2020, section 3.3) cuts each slice into superpixels by Felzenszwalb
and Huttenlocher (IJCV 2004); the query is the support slice after a geometric and an intensity
transform. ADNet (Hansen et al., MedIA 2022, section 3.2) uses a 3D version, and for a query another
slice that the supervoxel goes through; here, superpixels of successive slices that overlap by more
than half form one supervoxel instead.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.segmentation import felzenszwalb
from torch import Tensor

from fsmis.data.dataset import Scan
from fsmis.data.nifti import read_volume
from fsmis.errors import UserError
from fsmis.files import sha256, write_atomic
from fsmis.methods.trained.network import Episodes
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
            raise UserError(f"method.training.supervoxels.overlap={overlap}: choose 0.5 to 1")
        self.files = None if files is None else Path(files).expanduser()
        if self.files is not None and not self.files.is_dir():
            raise UserError(
                f"method.training.supervoxels.files={files}: no such folder; null computes them"
            )
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
                    "(method.training.supervoxels.files=null)"
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


@dataclass(frozen=True)
class Views:
    """How far the two views of an episode differ; see ``conf/episodic/default.yaml``.

    Attributes:
        neighbours: most slices between support and query.
        translation: largest shift along each axis, fraction of the side.
        scale: range of the size factor.
        bend: deviation of the smooth displacement, fraction of the side.
        bend_points: control points of that displacement along a side.
        gamma, contrast: ranges for the intensities, drawn evenly on a log scale.
        noise: largest deviation of the noise.
    """

    neighbours: int
    rotation_deg: float
    translation: float
    scale: Sequence[float]
    shear_deg: float
    bend: float
    bend_points: int
    gamma: Sequence[float]
    contrast: Sequence[float]
    noise: float


def resized(images: np.ndarray | Tensor, size: int) -> Tensor:
    """Images float32 ``[B, size, size]`` from ``[B, H, W]``, antialiased."""
    tensor = torch.as_tensor(images)[:, None]
    return F.interpolate(tensor, (size, size), mode="bilinear", antialias=True)[:, 0].clamp(0, 1)


class EpisodeSource:
    """Training slices with supervoxels int [Z, H, W] (0: none), from which episodes are drawn.

    ``size`` is the side of the episodes' slices; a step has ``pairs`` of slices, each with
    ``classes`` pseudo-classes.
    """

    def __init__(
        self,
        scans: Iterable[tuple[Scan, np.ndarray]],
        size: int,
        views: Views,
        pairs: int,
        classes: int,
    ) -> None:
        images = [torch.empty(0, size, size)]
        segments = [torch.empty(0, size, size)]
        self._scan: list[int] = []
        for number, (scan, supervoxels) in enumerate(scans):
            images.append(resized(scan.image, size))
            ids = torch.as_tensor(supervoxels).float()[:, None]
            segments.append(F.interpolate(ids, (size, size), mode="nearest-exact")[:, 0])
            self._scan += [number] * len(scan.image)
        self._images, self._segments = torch.cat(images), torch.cat(segments)
        self._ids = [np.setdiff1d(slice_.numpy(), [0]) for slice_ in self._segments]
        self._slices = np.flatnonzero([len(ids) > 0 for ids in self._ids])
        self._views, self._pairs, self._classes = views, pairs, classes

    def __len__(self) -> int:
        """Number of slices with a supervoxel."""
        return len(self._slices)

    def draw(self, rng: np.random.Generator) -> Episodes:
        drawn = [self._pair(rng) for _ in range(self._pairs)]
        first = np.array([support for support, _, _ in drawn])
        second = np.array([query for _, query, _ in drawn])
        ids = torch.as_tensor(np.stack([ids for _, _, ids in drawn]))[:, :, None, None]
        grid = self._deformation(rng)
        moved = F.grid_sample(self._images[second][:, None], grid, align_corners=False)[:, 0]
        # supervoxel ids must not blend
        segments = F.grid_sample(
            self._segments[second][:, None], grid, mode="nearest", align_corners=False
        )
        return Episodes(
            support=self._appearance(self._images[first], rng),
            support_masks=self._segments[first][:, None] == ids,
            query=self._appearance(moved, rng),
            query_masks=segments == ids,
        )

    def _pair(self, rng: np.random.Generator) -> tuple[int, int, np.ndarray]:
        """Support slice, query slice and the supervoxels to segment."""
        support = int(rng.choice(self._slices))
        query = support + int(rng.integers(-self._views.neighbours, self._views.neighbours + 1))
        ids = self._ids[support]
        if query in range(len(self._ids)) and self._scan[query] == self._scan[support]:
            shared = np.intersect1d(ids, self._ids[query])
        else:
            shared = ids[:0]
        if len(shared) == 0:
            query, shared = support, ids
        return support, query, rng.choice(shared, self._classes, len(shared) < self._classes)

    def _deformation(self, rng: np.random.Generator) -> Tensor:
        """Sampling grids ``[B, size, size, 2]``: an affine and a smooth displacement."""
        views, count = self._views, self._pairs
        angle = np.deg2rad(rng.uniform(-views.rotation_deg, views.rotation_deg, count))
        shear = np.tan(np.deg2rad(rng.uniform(-views.shear_deg, views.shear_deg, count)))
        scale = rng.uniform(views.scale[0], views.scale[1], count)
        shift = 2 * rng.uniform(-views.translation, views.translation, (count, 2))
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        matrix = np.stack([cos, cos * shear - sin, sin, sin * shear + cos], 1).reshape(-1, 2, 2)
        theta = torch.as_tensor(np.concatenate([matrix, shift[:, :, None]], 2)).float()
        size = self._images.shape[-1]
        grid = F.affine_grid(theta, [count, 1, size, size], align_corners=False)
        points = (count, 2, views.bend_points, views.bend_points)
        bend = torch.as_tensor(2 * views.bend * rng.standard_normal(points)).float()
        bent = F.interpolate(bend, (size, size), mode="bicubic", align_corners=True)
        return grid + bent.permute(0, 2, 3, 1)

    def _appearance(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        views, shape = self._views, (len(images), 1, 1)
        gamma, contrast = (
            torch.as_tensor(np.exp(rng.uniform(np.log(low), np.log(high), shape))).float()
            for low, high in (views.gamma, views.contrast)
        )
        deviation = rng.uniform(0, views.noise, shape)
        noise = torch.as_tensor(deviation * rng.standard_normal(images.shape)).float()
        return (contrast * images**gamma + noise).clamp(0, 1)
