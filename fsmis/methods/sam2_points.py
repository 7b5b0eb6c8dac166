"""SAM2 prompted with two points, as PerSAM."""

from torch import Tensor

from fsmis.features.similarity import extreme_points
from fsmis.methods.similarity_prompt import SimilarityPrompt


class Sam2Points(SimilarityPrompt):
    """Most similar place: organ; least similar: background. See :class:`SimilarityPrompt`."""

    def prompts(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """See ``SimilarityPrompt.prompts``."""
        return extreme_points(maps)
