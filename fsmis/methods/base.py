"""What a few-shot segmentation method is: one call from an episode to masks."""

from abc import ABC, abstractmethod

import numpy as np

from fsmis.protocol import Episode


class Method(ABC):
    """A few-shot segmentation method.

    Adding one is a file in ``fsmis/methods/`` and a YAML in ``conf/method/`` whose ``_target_``
    names the class; every other key of the YAML is an argument of its constructor.
    """

    @abstractmethod
    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """Segment the query slices of every organ of the episode.

        Args:
            episode: support slices with masks, and the query scan without any label.

        Returns:
            ``{organ: bool [S, H, W]}``, S in the order of ``episode.organs[organ].query_slices``.
        """
