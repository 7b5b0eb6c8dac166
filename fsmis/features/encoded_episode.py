"""An episode through the encoder: every slice once, however many organs use it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsmis.methods.base import Match
from fsmis.protocol import Episode, OrganTask
from fsmis.segmenters.features import Features
from fsmis.segmenters.sam2 import Sam2


@dataclass(frozen=True, eq=False)
class EncodedEpisode:
    """Features of the distinct slices of an episode.

    Attributes:
        queries: of the query slices.
        supports: of the support slices.
        query_slices: positions of the former in the query scan, int, ascending.
        support_slices: positions of the latter in the support scan, int, ascending.
    """

    queries: Features
    supports: Features
    query_slices: np.ndarray
    support_slices: np.ndarray

    @classmethod
    def encode(cls, segmenter: Sam2, episode: Episode) -> EncodedEpisode:
        """Pass the episode's distinct slices through the segmenter's encoder."""
        query, support = episode.query_slices, episode.support_slices
        return cls(
            segmenter.encode(episode.query.image[query]),
            segmenter.encode(episode.support.image[support]),
            query,
            support,
        )

    def query_rows(self, task: OrganTask) -> np.ndarray:
        """Rows of ``queries``, int ``[S]``, that hold a task's query slices."""
        return np.searchsorted(self.query_slices, task.query_slices)

    def support_rows(self, task: OrganTask) -> np.ndarray:
        """Rows of ``supports``, int ``[P]``, that hold a task's support slices."""
        return np.searchsorted(self.support_slices, task.support_slices)


def support_of_each_slice(episode: Episode) -> dict[str, list[Match]]:
    """For figures, by organ: the labelled slice of the part that each query slice belongs to."""
    return {
        organ: [
            Match(episode.support.image[task.support_slices[part]], task.support_masks[part])
            for part in task.part
        ]
        for organ, task in episode.organs.items()
    }
