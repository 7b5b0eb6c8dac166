"""PANet: Wang et al., "Few-Shot Image Semantic Segmentation with Prototype Alignment", ICCV 2019.

Trained on superpixels as SSL-PANet, the baseline of Ouyang et al., ECCV 2020.
"""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from fsmis.episodic.method import EpisodicMethod
from fsmis.episodic.network import EpisodicNetwork, Features
from fsmis.features.prototypes import on_grid, panet_logits
from fsmis.training_scans import TrainingScans


class PANetNetwork(EpisodicNetwork):
    """One prototype for the foreground and one for the background."""

    def compare(self, support: Features, masks: Tensor, query: Features) -> Tensor:
        """Section 3.2: prototypes by masked average pooling (eq. 1, 2). Section 3.3: the cosine to
        each, times 20 (eq. 3)."""
        (support_map,), (query_map,) = support, query
        return panet_logits(support_map, on_grid(masks, support_map.shape[-2:]), query_map)


class PANet(EpisodicMethod):
    """Non-parametric metric learning against one prototype a class; see ``EpisodicMethod``."""

    def train(self, scans: TrainingScans) -> tuple[EpisodicNetwork, pd.DataFrame]:
        network = self.training.build(PANetNetwork, 1, scans.fold)
        return network, self.training.train(network, scans, "panet", {})
