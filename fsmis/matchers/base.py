"""What a matcher is: distances between query slices and augmented copies of the support."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch

from fsmis.segmenters.features import Features

# What a matcher reads: images float32 [B, H, W] in [0, 1], or the segmenter's features of B images.
Slices = TypeVar("Slices", np.ndarray, Features)


class Matcher(ABC, Generic[Slices]):
    """Distance between every query slice and every support copy; lower is nearer.

    ``fit`` keeps what is needed of the copies, so that every image passes through a network once
    for all pairs.

    Attributes:
        on_features: reads the segmenter's features in place of images, so that who holds them
            already encodes nothing twice.
        image_size: side in pixels that it brings images to itself; None where copies and queries
            have to come in one size.
    """

    on_features: ClassVar[bool] = False
    image_size: int | None = None

    @abstractmethod
    def fit(self, support: Slices) -> None:
        """Remember the N support copies."""

    @abstractmethod
    def distance(self, queries: Slices) -> torch.Tensor:
        """Distances float ``[S, N]`` of S query slices to the copies."""
