"""What a few-shot segmentation method is: one call from an episode to masks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from fsmis.protocol import Episode


@dataclass(frozen=True, eq=False)
class Match:
    """What a query slice was segmented from: an image float32 [H, W] in [0, 1] and a mask bool
    [H, W] on it."""

    image: np.ndarray
    mask: np.ndarray


class Method(ABC):
    """A few-shot segmentation method.

    Adding one is a file in ``fsmis/methods/`` and a YAML in ``conf/method/`` whose ``_target_``
    names the class; every other key of the YAML is an argument of its constructor.

    Attributes:
        matches: for figures, what each query slice of the last episode was segmented from, by
            organ; empty for methods that cannot say.
    """

    matches: Mapping[str, list[Match]] = MappingProxyType({})

    @abstractmethod
    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """Segment the query slices of every organ of the episode.

        Args:
            episode: support slices with masks, and the query scan without any label.

        Returns:
            ``{organ: bool [S, H, W]}``, S in the order of ``episode.organs[organ].query_slices``.
        """
