"""PANet, SSL-ALPNet, ADNet and Q-Net: how each compares a query with the support."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from fsmis.methods import TrainingScans
from fsmis.methods.trained.network import (
    Encoder,
    EpisodicNetwork,
    Features,
    upsampled,
)
from fsmis.methods.trained.training import EpisodicMethod, EpisodicTraining
from fsmis.segmenters.features import (
    alpnet_logits,
    cosine_logits,
    masked_average,
    on_grid,
    panet_logits,
)


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


ALPHA = 20.0  # scale of the anomaly score
STEEPNESS = 0.5  # of the soft threshold


class ADNetNetwork(EpisodicNetwork):
    """One foreground prototype; whatever is unlike it is an anomaly, the background.

    ``threshold`` is the initial value of the learned one, on the anomaly score in [-20, 20].
    """

    def __init__(self, encoder: Encoder, background_weight: float, threshold: float) -> None:
        super().__init__(encoder, background_weight)
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def compare(self, support: Features, masks: Tensor, query: Features) -> Tensor:
        """Section 3.1: with the anomaly score S = -20 cos(F, p), the foreground's probability is
        1 - sigmoid(0.5 (S - T)), so the logits are 0 and 0.5 (T - S)."""
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
    foreground = STEEPNESS * (threshold - score)
    return torch.stack([torch.zeros_like(foreground), foreground], 1)


class ADNet(EpisodicMethod):
    """Anomaly detection around one prototype, with a learned threshold."""

    def __init__(self, training: EpisodicTraining, batch_size: int, threshold: float) -> None:
        super().__init__(training, batch_size)
        self._settings = {"threshold": threshold}

    def train(self, scans: TrainingScans) -> tuple[EpisodicNetwork, pd.DataFrame]:
        network = self.training.build(ADNetNetwork, 1, scans.fold, **self._settings)
        return network, self.training.train(network, scans, "adnet", self._settings)


class QNetNetwork(EpisodicNetwork):
    """Two scales of features, each with its prototype; a threshold predicted from the query.

    Args:
        encoder: returns two levels.
        threshold: initial threshold of the anomaly score, which is in [-20, 20].
        hidden: width of the layer that predicts the threshold.
        level_weights: weights of the two scales' predictions, coarse last.
    """

    def __init__(
        self,
        encoder: Encoder,
        background_weight: float,
        threshold: float,
        hidden: int,
        level_weights: Sequence[float],
    ) -> None:
        super().__init__(encoder, background_weight)
        last = nn.Linear(hidden, 1)
        nn.init.constant_(last.bias, threshold)
        self.to_threshold = nn.Sequential(nn.Linear(encoder.channels, hidden), nn.ReLU(), last)
        self.level_weights = tuple(level_weights)
        self.refinements = 0
        self.refinement_rate = 0.0

    def compare(self, support: Features, masks: Tensor, query: Features) -> Tensor:
        """The weighted mean over the scales (section III-A) of ADNet's soft threshold, the
        threshold from fully connected layers on the query's features (section III-B)."""
        threshold = self.to_threshold(query[-1].mean((2, 3)))[:, :, None]
        size = query[0].shape[-2:]
        levels = [
            weight * upsampled(self._level(support_map, query_map, masks, threshold), size)
            for weight, support_map, query_map in zip(
                self.level_weights, support, query, strict=True
            )
        ]
        probability = torch.stack(levels).sum(0)
        return probability.clamp(min=torch.finfo(probability.dtype).eps).log()

    def _level(self, support: Tensor, query: Tensor, masks: Tensor, threshold: Tensor) -> Tensor:
        """Probabilities ``[E, 2, h, w]`` from the maps ``[E, C, h, w]`` of one scale."""
        prototype = masked_average(support, on_grid(masks, support.shape[-2:]))
        if self.refinements:
            prototype = self._refined(prototype, query, threshold)
        return predict(query, prototype, threshold)

    def _refined(self, prototype: Tensor, query: Tensor, threshold: Tensor) -> Tensor:
        """Prototypes ``[E, C]`` adapted to the query's foreground at test time (section III-C).

        Query features whose foreground is replaced by the prototype should stay the same, says the
        paper. Here gradient steps reduce the public code's loss, a cross-entropy over channels
        whose target is not normalised: it is linear in the prototype, so that the steps move all
        channels by much the same, whatever the query. The foreground is predicted anew after each.
        """
        prototype = prototype.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([prototype], self.refinement_rate)
        channels = query.log_softmax(1)
        for _ in range(self.refinements):
            with torch.no_grad():
                foreground = predict(query, prototype, threshold)[:, 1:]
            with torch.enable_grad():
                rebuilt = (1 - foreground) * query + foreground * prototype[:, :, None, None]
                loss = -(rebuilt * channels).sum(1).mean((1, 2)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return prototype.detach()


def predict(query: Tensor, prototype: Tensor, threshold: Tensor) -> Tensor:
    """Probabilities ``[E, 2, h, w]`` of query maps ``[E, C, h, w]`` for prototypes ``[E, C]``."""
    score = -cosine_logits(query, prototype[:, None], scale=ALPHA)
    return soft_threshold(score, threshold).softmax(1)


class QNet(EpisodicMethod):
    """Query-informed anomaly detection on two scales.

    ``refinements`` steps of Adam at rate ``refinement_rate`` refine a prototype at test time.
    """

    def __init__(
        self,
        training: EpisodicTraining,
        batch_size: int,
        threshold: float,
        hidden: int,
        level_weights: Sequence[float],
        refinements: int,
        refinement_rate: float,
    ) -> None:
        super().__init__(training, batch_size)
        self._settings = {
            "threshold": threshold,
            "hidden": hidden,
            "level_weights": [float(weight) for weight in level_weights],
        }
        self._refinements = refinements
        self._refinement_rate = refinement_rate

    def train(self, scans: TrainingScans) -> tuple[EpisodicNetwork, pd.DataFrame]:
        network = self.training.build(QNetNetwork, 2, scans.fold, **self._settings)
        log = self.training.train(network, scans, "qnet", self._settings)
        network.refinements, network.refinement_rate = self._refinements, self._refinement_rate
        return network, log
