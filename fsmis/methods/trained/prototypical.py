"""PANet and ALPNet: queries compared with prototypes of the support."""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from fsmis.data.training_scans import TrainingScans
from fsmis.methods.trained.method import EpisodicMethod
from fsmis.methods.trained.network import Encoder, EpisodicNetwork, Features
from fsmis.methods.trained.training import EpisodicTraining
from fsmis.segmenters.features import alpnet_logits, on_grid, panet_logits


class PANetNetwork(EpisodicNetwork):
    """One prototype for the foreground and one for the background."""

    def compare(self, support: Features, masks: Tensor, query: Features) -> Tensor:
        """Section 3.2: prototypes by masked average pooling (eq. 1, 2). Section 3.3: the cosine to
        each, times 20 (eq. 3)."""
        (support_map,), (query_map,) = support, query
        return panet_logits(support_map, on_grid(masks, support_map.shape[-2:]), query_map)


class PANet(EpisodicMethod):
    """Non-parametric metric learning with one prototype for each class."""

    def train(self, scans: TrainingScans) -> tuple[EpisodicNetwork, pd.DataFrame]:
        network = self.training.build(PANetNetwork, 1, scans.fold)
        return network, self.training.train(network, scans, "panet", {})


class ALPNetNetwork(EpisodicNetwork):
    """Adaptive local prototypes: of windows that a class fills, and one of the whole foreground.

    ``window`` is their side in cells of the feature map; a window belongs to a class that covers
    more than ``threshold`` of it.
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
    """Local prototypes of both classes.

    ``test_window`` replaces ``window`` at test time; it is smaller in the public code.
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
