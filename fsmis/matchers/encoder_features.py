"""The segmenter's own image features as a distance: free, because they are computed anyway."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fsmis.errors import UserError
from fsmis.matchers.features import FeatureMatcher, squared_distances
from fsmis.segmenters.sam2 import Features, Sam2


class EncoderFeatures(FeatureMatcher):
    """Mean over positions of 1 - cosine of the two images' feature vectors there, in [0, 2].

    Who holds encoded images already hands them to :meth:`fit_features` and
    :meth:`distance_features` in place of :meth:`fit` and :meth:`distance`, and nothing is encoded
    twice.

    Args:
        segmenter: encodes the images.
        level: of ``Features.levels``; -1 is the coarsest, the image embedding.
        batch_size: images encoded at a time.
    """

    needs_segmenter = True

    def __init__(self, segmenter: Sam2, level: int, batch_size: int):
        super().__init__(batch_size)
        self.segmenter = segmenter
        self.level = level

    def features(self, images: np.ndarray) -> Tensor:
        """Unit feature vectors of all positions, ``[B, C x h x w]``, scaled so that the squared
        distance is the mean of 1 - cosine."""
        return self._vectors(self.segmenter.encode(images))

    @torch.inference_mode()
    def fit_features(self, features: Features) -> None:
        """As :meth:`fit`, from the features of the N copies."""
        self._copies = self._vectors(features)

    @torch.inference_mode()
    def distance_features(self, features: Features) -> Tensor:
        """As :meth:`distance`, from the features of the S query images."""
        return squared_distances(self._vectors(features), self._copies)

    def _vectors(self, features: Features) -> Tensor:
        levels = len(features.levels)
        if not -levels <= self.level < levels:
            raise UserError(f"matcher.level={self.level}; the segmenter has {levels} levels")
        maps = torch.nn.functional.normalize(features.levels[self.level].float())
        positions = maps[0, 0].numel()
        return maps.flatten(1) * (0.5 / positions) ** 0.5
