"""Settings of the synthetic data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


@dataclass(frozen=True)
class SyntheticSettings:
    """Ranges of the generator; see ``conf/training/sam2_mini.yaml`` for what each does."""

    tissues: int
    organs: int
    targets: int
    rotation: float
    scaling: float
    shift: float
    displacement: float
    height_change: float
    beyond: float
    elsewhere: float
    cropped: float
    crop_factor: Sequence[float]
    misplaced: float
    field_of_view: float
    shape_change: float
    thinnest: float
    ct: float
    contrast_change: float
    texture: float
    vessels: float
    noise: float
    bias_field: float
    gamma: float
    absent: float
    smallest: float
    largest: float


class Draw:
    def __init__(self, generator: Generator):
        self.generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        device = self.generator.device
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        return self.uniform(0, 1, *shape) < probability

    def smooth(self, cells: int, size: int, *shape: int) -> Tensor:
        """Smooth fields of unit deviation, ``cells`` bumps a side: ``[*shape, size, size]``."""
        coarse = self.normal(math.prod(shape), 1, cells, cells)
        fine = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
        fine = fine / fine.std((1, 2, 3), keepdim=True).clamp(min=1e-3)
        return fine.view(*shape, size, size)
