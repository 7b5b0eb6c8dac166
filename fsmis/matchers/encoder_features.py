"""The segmenter's own image features as a distance: free, because they are computed anyway."""

import torch
from torch import Tensor

from fsmis.errors import UserError
from fsmis.matchers.features import FeatureMatcher
from fsmis.segmenters.features import Features


class EncoderFeatures(FeatureMatcher[Features]):
    """Mean over positions of 1 - cosine of two images' feature vectors there, in [0, 2].

    Args:
        level: of ``Features.levels``; -1 is the coarsest, the image embedding.
        batch_size: images compared at a time.

    Raises:
        UserError: the segmenter has no such level.
    """

    on_features = True

    def __init__(self, level: int, batch_size: int):
        super().__init__(batch_size)
        self.level = level

    def vectors(self, slices: Features) -> Tensor:
        """Unit feature vectors of all positions, ``[B, C x h x w]``, scaled so that the squared
        distance is the mean of 1 - cosine."""
        levels = len(slices.levels)
        if not -levels <= self.level < levels:
            raise UserError(
                f"matcher.level={self.level}; the segmenter has {levels} levels, use -{levels} to "
                f"{levels - 1}"
            )
        maps = torch.nn.functional.normalize(slices.levels[self.level].float())
        positions = maps[0, 0].numel()
        return maps.flatten(1) * (0.5 / positions) ** 0.5
