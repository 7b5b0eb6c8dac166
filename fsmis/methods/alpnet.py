"""SSL-ALPNet: Ouyang et al., "Self-Supervision with Superpixels: Training Few-Shot Medical Image
Segmentation without Annotation", ECCV 2020, and IEEE TMI 2022."""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from fsmis.episodic.encoder import Encoder
from fsmis.episodic.method import EpisodicMethod
from fsmis.episodic.network import EpisodicNetwork, Features
from fsmis.episodic.training import EpisodicTraining
from fsmis.features.prototypes import alpnet_logits, on_grid
from fsmis.training_scans import TrainingScans


class ALPNetNetwork(EpisodicNetwork):
    """Adaptive local prototypes: of windows that a class fills, and one of the whole foreground.

    Args:
        encoder: see ``EpisodicNetwork``.
        background_weight: see ``EpisodicNetwork``.
        window: side of the windows, cells of the feature map.
        threshold: a window belongs to a class that covers more of it than this.
    """

    def __init__(
        self, encoder: Encoder, background_weight: float, window: int, threshold: float
    ) -> None:
        super().__init__(encoder, background_weight)
        self.window = window
        self.threshold = threshold

    def compare(self, support: Features, masks: Tensor, query: Features) -> Tensor:
        """Section 3.2: local prototypes by average pooling over windows (eq. 1), the class-level
        one (eq. 2), and the softmax-weighted cosine to those of each class (eq. 3, 4)."""
        (support_map,), (query_map,) = support, query
        foreground = on_grid(masks, support_map.shape[-2:])
        return alpnet_logits(support_map, foreground, query_map, self.window, self.threshold)


class ALPNet(EpisodicMethod):
    """Local prototypes of both classes; see ``EpisodicMethod``.

    Args:
        training: see ``EpisodicMethod``.
        batch_size: see ``EpisodicMethod``.
        window: of the training.
        test_window: of the segmentation, smaller in the public code.
        threshold: see ``ALPNetNetwork``.
    """

    def __init__(
        self,
        training: EpisodicTraining,
        batch_size: int,
        window: int,
        test_window: int,
        threshold: float,
    ) -> None:
        super().__init__(training, batch_size)
        self._settings = {"window": window, "threshold": threshold}
        self._test_window = test_window

    def train(self, scans: TrainingScans) -> tuple[EpisodicNetwork, pd.DataFrame]:
        network = self.training.build(ALPNetNetwork, 1, scans.fold, **self._settings)
        log = self.training.train(network, scans, "alpnet", self._settings)
        network.window = self._test_window
        return network, log
