"""What a few-shot segmentation method is: one call from an episode to masks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd

from fsmis.data.protocol import Episode
from fsmis.data.training_scans import TrainingScans
from fsmis.pipeline.matching import Match


class Method(ABC):
    """A few-shot segmentation method.

    Adding one is a file in ``fsmis/methods/`` and a YAML in ``conf/method/`` whose ``_target_``
    names the class; every other key of the YAML is an argument of its constructor.

        from fsmis import Method
        class Bright(Method):  # a whole one is in the README
            def segment(self, episode): ...  # {organ: bool [S, H, W]}

    Attributes:
        setting: which slices of the training scans a trained method may see, 1 or 2 (see
            ``TrainingScans``).
        matches: for figures, what each query slice of the last episode was segmented from, by
            organ; empty for methods that cannot say.
        confidence: how sure it is of the last episode's organs, in [0, 1]; without those not found,
            empty for methods that cannot say.
    """

    setting: int = 1
    matches: Mapping[str, list[Match]] = MappingProxyType({})
    confidence: Mapping[str, float] = MappingProxyType({})

    def fit(self, scans: TrainingScans) -> pd.DataFrame | None:
        """Train for a fold; called before its first episode. Does nothing by default.

        Args:
            scans: other scans than the fold's, without any label.

        Returns:
            What came of it, for the run's ``training`` folder: columns ``step`` and ``loss``, and
            the terms that the loss is the sum of; None where nothing was trained.
        """
        return None

    @abstractmethod
    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """Segment the query slices of every organ of the episode.

        Args:
            episode: support slices with masks, and the query scan without any label.

        Returns:
            ``{organ: bool [S, H, W]}``, S in the order of ``episode.organs[organ].query_slices``.
        """
