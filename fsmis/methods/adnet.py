"""ADNet: Hansen et al., "Anomaly Detection-Inspired Few-Shot Medical Image Segmentation Through
Self-Supervision With Supervoxels", Medical Image Analysis 78, 2022."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from fsmis.episodic.encoder import Encoder
from fsmis.episodic.method import EpisodicMethod
from fsmis.episodic.network import EpisodicNetwork, Features
from fsmis.episodic.training import EpisodicTraining
from fsmis.features.prototypes import cosine_logits, masked_average, on_grid
from fsmis.training_scans import TrainingScans

ALPHA = 20.0  # scale of the anomaly score
STEEPNESS = 0.5  # of the soft threshold


class ADNetNetwork(EpisodicNetwork):
    """One foreground prototype; whatever is unlike it is an anomaly, the background.

    Args:
        encoder: see ``EpisodicNetwork``.
        background_weight: see ``EpisodicNetwork``.
        threshold: initial value of the learned threshold of the anomaly score, which is in
            [-20, 20].
    """

    def __init__(self, encoder: Encoder, background_weight: float, threshold: float) -> None:
        super().__init__(encoder, background_weight)
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def compare(self, support: Features, masks: Tensor, query: Features) -> Tensor:
        """Section 3.1: the anomaly score S = -20 cos(F, p) and the soft threshold: the foreground's
        probability is 1 - sigmoid(0.5 (S - T)). Logits 0 and 0.5 (T - S) say the same."""
        (support_map,), (query_map,) = support, query
        return soft_threshold(anomaly_score(support_map, masks, query_map), self.threshold)

    def regularisation(self) -> dict[str, Tensor]:
        """Section 3.1: T / 20 keeps the threshold low, the foreground compact."""
        return {"threshold": self.threshold / ALPHA}


def anomaly_score(support: Tensor, masks: Tensor, query: Tensor) -> Tensor:
    """Scores ``[E, h, w]`` in [-20, 20], low on the foreground, for maps ``[E, C, h, w]``."""
    prototype = masked_average(support, on_grid(masks, support.shape[-2:]))
    return -cosine_logits(query, prototype[:, None], scale=ALPHA)


def soft_threshold(score: Tensor, threshold: Tensor) -> Tensor:
    """Logits ``[E, 2, h, w]`` of scores ``[E, h, w]``."""
    foreground = STEEPNESS * (threshold - score)
    return torch.stack([torch.zeros_like(foreground), foreground], 1)


class ADNet(EpisodicMethod):
    """Anomaly detection around one prototype; see ``EpisodicMethod``.

    Args:
        training: see ``EpisodicMethod``.
        batch_size: see ``EpisodicMethod``.
        threshold: see ``ADNetNetwork``.
    """

    def __init__(self, training: EpisodicTraining, batch_size: int, threshold: float) -> None:
        super().__init__(training, batch_size)
        self._settings = {"threshold": threshold}

    def train(self, scans: TrainingScans) -> tuple[EpisodicNetwork, pd.DataFrame]:
        network = self.training.build(ADNetNetwork, 1, scans.fold, **self._settings)
        return network, self.training.train(network, scans, "adnet", self._settings)
