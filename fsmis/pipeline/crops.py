"""Square crops of slices, and what was found on them put back at its place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Crops:
    """One window for each of N slices of H x W pixels; it may reach beyond its slice.

    Attributes:
        centres: float ``[N, 2]``, (y, x) in pixels, 0 at the edge of the first pixel.
        sides: float ``[2]``, height and width in pixels, of all windows.
        shape: (H, W).
    """

    centres: np.ndarray
    sides: np.ndarray
    shape: tuple[int, int]

    def __getitem__(self, rows: np.ndarray) -> Crops:
        return replace(self, centres=self.centres[rows])

    @property
    def magnification(self) -> float:
        """How many times the slice is as large as a window, along the axis where it is least."""
        return float((self.shape / self.sides).min())

    def cut(self, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Crops float32 ``[N, *size]`` of ``[N, H, W]``, linear; beyond the slice its edge."""
        pixels = torch.from_numpy(np.ascontiguousarray(images, np.float32))[:, None]
        smaller = np.minimum(1, size / self.sides)
        if (smaller < 1).any():  # averaged first, so that nothing falls between the samples
            shape = np.maximum(1, np.rint(smaller * self.shape)).astype(int).tolist()
            pixels = F.interpolate(pixels, shape, mode="bilinear", antialias=True)
        grid = self._grid(2 * self.centres / self.shape - 1, self.sides / self.shape, size)
        cut = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        return cut[:, 0].numpy()

    def cut_masks(self, masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The same of bool masks; of one that is not empty something stays, however thin."""
        cut = self.cut(masks, size)
        kept = cut >= np.clip(cut.max(axis=(1, 2), keepdims=True), 1e-6, 0.5)
        lost = masks.any(axis=(1, 2)) & ~kept.any(axis=(1, 2))  # between two samples
        kept[lost, size[0] // 2, size[1] // 2] = True
        return kept

    def put_back(self, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps ``[N, size, size]`` of the crops on their slices, linear: float32 ``[N, H, W]``, and
        bool ``[N, H, W]``, which pixels the crops hold."""
        half = self.sides / self.shape
        centres = 2 * self.centres / self.shape - 1
        grid = self._grid(-centres / half, 1 / half, self.shape)
        pixels = torch.from_numpy(np.ascontiguousarray(maps, np.float32))[:, None]
        back = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        return back[:, 0].numpy(), (grid.abs() <= 1).all(-1).numpy()

    def _grid(self, centres: np.ndarray, scales: np.ndarray, size: tuple[int, int]) -> Tensor:
        """Where to sample, for output pixels u in [-1, 1]: ``centres + scales * u``."""
        theta = torch.zeros(len(centres), 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = float(scales[1]), float(scales[0])
        theta[:, :, 2] = torch.from_numpy(np.ascontiguousarray(centres[:, ::-1], np.float32))
        return F.affine_grid(theta, [len(centres), 1, *size], align_corners=False)


def boxes(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres and extents (y, x), float ``[N, 2]`` each in pixels, of masks bool ``[N, H, W]``; NaN
    for empty ones."""
    centres = np.full((len(masks), 2), np.nan)
    extents = np.full((len(masks), 2), np.nan)
    for row, mask in enumerate(masks):
        for axis in (0, 1):
            filled = np.flatnonzero(mask.any(axis=1 - axis))
            if len(filled):
                low, high = filled[0], filled[-1] + 1
                centres[row, axis], extents[row, axis] = (low + high) / 2, high - low
    return centres, extents
