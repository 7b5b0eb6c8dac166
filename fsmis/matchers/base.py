"""What a matcher is: distances between query slices and augmented copies of the support."""

from abc import ABC, abstractmethod

import numpy as np
import torch


class Matcher(ABC):
    """Distance between every query slice and every support copy; lower is nearer.

    ``fit`` keeps what is needed of the copies, so that every image passes through a network once
    for all pairs.
    """

    @abstractmethod
    def fit(self, support_images: np.ndarray) -> None:
        """Remember the support copies: float32 [N, H, W] in [0, 1]."""

    @abstractmethod
    def distance(self, query_images: np.ndarray) -> torch.Tensor:
        """Distances float [S, N] of query images float32 [S, H, W] in [0, 1] to the copies."""
