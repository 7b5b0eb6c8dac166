"""What a model keeps of images and of masks on them: tensors that share their batch dimension."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Rows = Tensor | np.ndarray | slice | list[int]  # what indexes a batch
NOWHERE = torch.empty(0)  # the position encoding of a model that has none


@dataclass(frozen=True)
class Features:
    """Image features of B images, indexable along the batch.

    Attributes:
        levels: float ``[B, C, h, w]``, fine to coarse; of SAM2 ``[B, C/8, 4h, 4h]``,
            ``[B, C/4, 2h, 2h]``, ``[B, C, h, h]``, h = image size / 16.
        position: position encoding of the last level, ``[1, C, h, h]``, where the model has one.
        keys: str ``[B]``, of the images in the feature cache; None without one.
        image: int ``[B]``, equal for rows that are the same image; None: every row is another.
    """

    levels: list[Tensor]
    position: Tensor = NOWHERE
    keys: np.ndarray | None = None
    image: Tensor | None = None

    def __len__(self) -> int:
        return len(self.levels[-1])

    def __getitem__(self, rows: Rows) -> Features:
        keys = None if self.keys is None else self.keys[rows]
        image = self.image
        if image is None:
            image = torch.arange(len(self), device=self.levels[-1].device)
        return Features([level[rows] for level in self.levels], self.position, keys, image[rows])

    @staticmethod
    def cat(parts: list[Features]) -> Features:
        # joined rows count as different images
        levels = [torch.cat(level) for level in zip(*(p.levels for p in parts), strict=True)]
        keys = [p.keys for p in parts if p.keys is not None]
        joined = np.concatenate(keys) if len(keys) == len(parts) else None
        return Features(levels, parts[0].position, joined)


@dataclass(frozen=True)
class Memory:
    """Memories of B (image, mask) pairs, indexable along the batch.

    Attributes:
        features: ``[B, ...]``; of SAM2 bfloat16 ``[B, M, h, h]``, as its predictor keeps them.
        pointer: ``[B, ...]``; of SAM2 the object pointer ``[B, C]``.
        position: position encoding of the features, one row, where the model has one.
    """

    features: Tensor
    pointer: Tensor
    position: Tensor = NOWHERE

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Rows) -> Memory:
        return Memory(self.features[rows], self.pointer[rows], self.position)

    @staticmethod
    def cat(parts: list[Memory]) -> Memory:
        features = torch.cat([p.features for p in parts])
        return Memory(features, torch.cat([p.pointer for p in parts]), parts[0].position)


def sequence(maps: Tensor) -> Tensor:
    """[B, C, h, w] -> [hw, B, C], the layout of SAM2's transformers."""
    return maps.flatten(2).permute(2, 0, 1)


def to_frames(images: np.ndarray, image_size: int) -> np.ndarray:
    """Frames uint8 ``[B, S, S]`` of images ``[B, H, W]`` in [0, 1]: 8 bits, then PIL's bicubic
    resize to ``image_size`` pixels."""
    eight_bits = (np.clip(images, 0, 1) * 255).round().astype(np.uint8)
    size = (image_size, image_size)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in eight_bits])


def on_grid(masks: Tensor, size: tuple[int, ...]) -> Tensor:
    """Float ``[B, h, w]``: the share of each grid cell that masks ``[B, H, W]`` cover."""
    return F.interpolate(masks[:, None].float(), size, mode="area")[:, 0]


def masked_average(features: Tensor, masks: Tensor) -> Tensor:
    """Mean ``[B, C]`` of features ``[B, C, h, w]`` by weights ``[B, h, w]``; 0 without any."""
    area = masks.sum((1, 2)).clamp(min=torch.finfo(masks.dtype).tiny)
    return torch.einsum("bchw,bhw->bc", features, masks) / area[:, None]


def local_prototypes(
    features: Tensor, masks: Tensor, window: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Mean features ``[B, P, C]`` of all P windows, and which the mask fills, bool ``[B, P]``.

    Args:
        features: ``[B, C, h, w]``; ``masks``: weights ``[B, h, w]``.
        window: side of the windows in grid cells; those at the far border may be smaller.
        threshold: the mask fills a window where its mean there is higher.
    """
    vectors = F.avg_pool2d(features, window, ceil_mode=True).flatten(2).transpose(1, 2)
    filled = F.avg_pool2d(masks[:, None], window, ceil_mode=True).flatten(1)
    return vectors, filled > threshold


def adaptive_prototypes(
    features: Tensor, masks: Tensor, window: int, threshold: float, always_average: bool
) -> tuple[Tensor, Tensor]:
    """Local prototypes and, last, the masked average: vectors ``[B, P + 1, C]``, bool ``[B, P+1]``.

    In ALPNet the foreground's prototypes always include the average (``always_average``), the
    background's only where the mask fills no window.
    """
    local, counts = local_prototypes(features, masks, window, threshold)
    average = masked_average(features, masks)
    average_counts = ~counts.any(1) | always_average
    return torch.cat([local, average[:, None]], 1), torch.cat([counts, average_counts[:, None]], 1)


def cosine_logits(
    features: Tensor, prototypes: Tensor, counts: Tensor | None = None, scale: float = 20.0
) -> Tensor:
    """Logits ``[B, h, w]`` of one class: scaled cosine similarity to its prototypes.

    With several prototypes, the sum of their similarities weighted by the softmax over them
    (ALPNet's soft maximum); with one it is PANet's similarity.

    Args:
        features: ``[B, C, h, w]``; ``prototypes``: ``[B, P, C]``.
        counts: bool ``[B, P]``, the prototypes to use, one or more in each row; None: all.
        scale: of the cosine (PANet: 20).
    """
    unit = F.normalize(features, dim=1), F.normalize(prototypes, dim=2)
    similarity = scale * torch.einsum("bchw,bpc->bphw", *unit)
    if counts is None:
        return (similarity.softmax(1) * similarity).sum(1)
    weights = similarity.masked_fill(~counts[:, :, None, None], -torch.inf).softmax(1)
    return (weights * similarity).sum(1)


def panet_logits(support: Tensor, foreground: Tensor, query: Tensor) -> Tensor:
    """PANet: logits ``[B, 2, h, w]`` of background and foreground, one prototype each.

    ``support`` and ``query`` are features ``[B, C, h, w]``; ``foreground`` weights the support,
    ``[B, h, w]`` in [0, 1].
    """
    averages = (masked_average(support, weights) for weights in (1 - foreground, foreground))
    return torch.stack([cosine_logits(query, average[:, None]) for average in averages], 1)


def alpnet_logits(
    support: Tensor, foreground: Tensor, query: Tensor, window: int, threshold: float
) -> Tensor:
    """ALPNet: the same with adaptive local prototypes, see :func:`adaptive_prototypes`."""
    classes = (1 - foreground, False), (foreground, True)
    prototypes = (
        adaptive_prototypes(support, weights, window, threshold, always_average)
        for weights, always_average in classes
    )
    return torch.stack([cosine_logits(query, *of_class) for of_class in prototypes], 1)


def batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows along the first axis, ``size`` at a time; the last batch may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def firm(soft: Tensor) -> Tensor:
    """Masks ``[..., H, W]`` as 0 and 1, float32, from resized ones in [0, 1]: at 0.5 one of a pixel
    or two would vanish, and an empty prompt asks for nothing."""
    return (soft >= soft.amax((-2, -1), keepdim=True).clamp(1e-6, 0.5)).float()


def resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits ``[B, 1, h, w]`` as ``[B, H, W]``."""
    return F.interpolate(mask, size, mode="bilinear", align_corners=False)[:, 0]
