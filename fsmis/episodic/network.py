"""What the trained baselines' networks share: an encoder, one comparison, and two losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmis.episodic.encoder import Encoder

Features = tuple[Tensor, ...]  # [B, C, h, w] for each level of the encoder


@dataclass(frozen=True, eq=False)
class Episodes:
    """Pairs of slices, and pseudo-classes in each: E = B * K episodes that share B encodings.

    Attributes:
        support: images float32 [B, H, W] in [0, 1].
        support_masks: bool [B, K, H, W].
        query: images float32 [B, H, W] in [0, 1].
        query_masks: bool [B, K, H, W].
    """

    support: Tensor
    support_masks: Tensor
    query: Tensor
    query_masks: Tensor


class EpisodicNetwork(nn.Module, ABC):
    """Compares a query with a labelled support; its parameters are all that training changes.

    Args:
        encoder: of support and query alike.
        background_weight: of a background pixel in the cross-entropy, that of foreground being 1.
    """

    def __init__(self, encoder: Encoder, background_weight: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.class_weights: Tensor
        self.register_buffer("class_weights", torch.tensor([background_weight, 1.0]))

    @abstractmethod
    def compare(self, support: Features, masks: Tensor, query: Features) -> Tensor:
        """Segment E queries, each by its own support.

        Args:
            support: features ``[E, C, h, w]`` of each level.
            masks: weights float ``[E, H, W]`` in [0, 1] on the support image's grid.
            query: as ``support``.

        Returns:
            logits ``[E, 2, h, w]`` of background and foreground.
        """

    def regularisation(self) -> dict[str, Tensor]:
        """Further terms of the loss, by name."""
        return {}

    def losses(self, episodes: Episodes) -> dict[str, Tensor]:
        """Terms of the training loss, by name; their sum is minimised.

        ``segmentation`` is the cross-entropy of the query. ``alignment`` is that of the support
        segmented back, with the query and its prediction as the support (PANet, section 3.4).
        """
        pairs, classes = episodes.support_masks.shape[:2]
        features = self.encoder(torch.cat([episodes.support, episodes.query]))
        repeated = [level.repeat_interleave(classes, 0) for level in features]
        support = tuple(level[: pairs * classes] for level in repeated)
        query = tuple(level[pairs * classes :] for level in repeated)
        support_masks = episodes.support_masks.flatten(0, 1)
        query_masks = episodes.query_masks.flatten(0, 1)
        size = query_masks.shape[-2:]
        logits = upsampled(self.compare(support, support_masks.float(), query), size)
        predicted = is_foreground(logits.detach()).float()
        # without a predicted pixel there is nothing to segment the support by
        found = predicted.any(2).any(1)
        back = upsampled(self.compare(query, predicted, support), size)
        return {
            "segmentation": self._cross_entropy(logits, query_masks),
            "alignment": self._cross_entropy(back[found], support_masks[found])
            if found.any()
            else logits.sum() * 0,
            **self.regularisation(),
        }

    def _cross_entropy(self, logits: Tensor, masks: Tensor) -> Tensor:
        return F.cross_entropy(logits, masks.long(), self.class_weights)


def upsampled(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits ``[E, 2, H, W]`` of ``size`` from ``[E, 2, h, w]``."""
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def is_foreground(logits: Tensor) -> Tensor:
    """Bool ``[E, h, w]`` of logits ``[E, 2, h, w]``."""
    return logits[:, 1] > logits[:, 0]
