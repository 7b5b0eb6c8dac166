"""Random numbers and smooth random fields from one generator."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


class Draw:
    """Random tensors from one generator."""

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
