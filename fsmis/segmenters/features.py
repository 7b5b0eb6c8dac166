"""What SAM2 keeps of images and of masks on them: tensors that share their batch dimension."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Rows = Tensor | np.ndarray | slice | list[int]  # what indexes a batch


@dataclass(frozen=True)
class Features:
    """Image features of B images, indexable along the batch.

    Attributes:
        levels: ``[B, C/8, 4h, 4h]``, ``[B, C/4, 2h, 2h]``, ``[B, C, h, h]``; h = image size / 16.
        position: position encoding of the last level, ``[1, C, h, h]``.
        keys: str ``[B]``, of the images in the feature cache; None without one.
    """

    levels: list[Tensor]
    position: Tensor
    keys: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.levels[-1])

    def __getitem__(self, rows: Rows) -> Features:
        keys = None if self.keys is None else self.keys[rows]
        return Features([level[rows] for level in self.levels], self.position, keys)

    @staticmethod
    def cat(parts: list[Features]) -> Features:
        """Join features along the batch."""
        levels = [torch.cat(level) for level in zip(*(p.levels for p in parts), strict=True)]
        keys = [p.keys for p in parts if p.keys is not None]
        joined = np.concatenate(keys) if len(keys) == len(parts) else None
        return Features(levels, parts[0].position, joined)


@dataclass(frozen=True)
class Memory:
    """Memories of B (image, mask) pairs, indexable along the batch.

    Attributes:
        features: bfloat16 ``[B, M, h, h]``, as the public predictor keeps them.
        position: ``[1, M, h, h]``.
        pointer: object pointer ``[B, C]``.
    """

    features: Tensor
    position: Tensor
    pointer: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Rows) -> Memory:
        return Memory(self.features[rows], self.position, self.pointer[rows])

    @staticmethod
    def cat(parts: list[Memory]) -> Memory:
        """Join memories along the batch."""
        features = torch.cat([p.features for p in parts])
        return Memory(features, parts[0].position, torch.cat([p.pointer for p in parts]))


def sequence(maps: Tensor) -> Tensor:
    """[B, C, h, w] -> [hw, B, C], the layout of SAM2's transformers."""
    return maps.flatten(2).permute(2, 0, 1)
