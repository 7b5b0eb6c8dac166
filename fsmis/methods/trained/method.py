"""A trained baseline as a method: fitted once per fold, then one comparison per query slice."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import pandas as pd
import torch

from fsmis.data.protocol import Episode
from fsmis.data.training_scans import TrainingScans
from fsmis.errors import UserError
from fsmis.methods.base import Method
from fsmis.methods.trained.episodes import resized
from fsmis.methods.trained.network import EpisodicNetwork, Features, is_foreground, upsampled
from fsmis.methods.trained.training import EpisodicTraining


class EpisodicMethod(Method):
    """Encode every slice once and compare every (organ, query slice) as an episode of its own.

    ``batch_size`` is the number of slices encoded, and of episodes compared, in one batch.
    """

    def __init__(self, training: EpisodicTraining, batch_size: int) -> None:
        self.training = training
        self.setting = training.setting
        self._at_once = batch_size
        self._network: EpisodicNetwork | None = None

    @abstractmethod
    def train(self, scans: TrainingScans) -> tuple[EpisodicNetwork, pd.DataFrame]:
        """Train the network of a fold; returned in eval mode, with the log of its training."""

    def fit(self, scans: TrainingScans) -> pd.DataFrame:
        self._network, log = self.train(scans)
        return log

    @torch.no_grad()
    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        if self._network is None:
            raise UserError(f"{type(self).__name__} is trained: python -m fsmis run does that")
        supports, queries = episode.support_slices, episode.query_slices
        support = self._encode(self._network, episode.support.image[supports])
        query = self._encode(self._network, episode.query.image[queries])
        segmented = {}
        for organ, task in episode.organs.items():
            size = self.training.image_size
            masks = resized(task.support_masks.astype(np.float32), size).to(self.training.device)
            rows = np.searchsorted(queries, task.query_slices)
            parts = np.searchsorted(supports, task.support_slices)[task.part]
            found = []
            for start in range(0, len(rows), self._at_once):
                batch = slice(start, start + self._at_once)
                logits = self._network.compare(
                    tuple(level[parts[batch]] for level in support),
                    masks[task.part[batch]],
                    tuple(level[rows[batch]] for level in query),
                )
                found.append(is_foreground(upsampled(logits, episode.query.image.shape[-2:])).cpu())
            segmented[organ] = torch.cat(found).numpy()
        return segmented

    def _encode(self, network: EpisodicNetwork, images: np.ndarray) -> Features:
        slices = resized(images, self.training.image_size).to(self.training.device)
        batches = [network.encoder(batch) for batch in slices.split(self._at_once)]
        return tuple(torch.cat(level) for level in zip(*batches, strict=True))
