"""Episodes from pseudo-labels: two views of a slice, and supervoxels that both show.

In SSL-ALPNet (Ouyang et al., ECCV 2020, section 3.3) the query is the support slice after a
geometric and an intensity transform. In ADNet (Hansen et al., MedIA 2022, section 3.2) it is
another slice that the supervoxel goes through.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsmis.data.dataset import Scan
from fsmis.methods.trained.network import Episodes


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
