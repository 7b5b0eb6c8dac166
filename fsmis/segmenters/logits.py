"""Mask logits as SAM2 reads them: foreground above 0."""

import torch
import torch.nn.functional as F
from torch import Tensor

NO_OBJECT = -1024.0  # SAM2's own logit for "the object is not in this frame"


def gated(mask: Tensor, object_score: Tensor) -> Tensor:
    """Mask logits ``[B, 1, h, w]``, nowhere an object where its score ``[B, 1]`` is 0 or less."""
    return torch.where(object_score[..., None, None] > 0, mask.float(), NO_OBJECT)


def resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits ``[B, 1, h, w]`` as ``[B, H, W]``."""
    return F.interpolate(mask, size, mode="bilinear", align_corners=False)[:, 0]
