"""SAM2 prompted with a box around what is similar."""

from torch import Tensor

from fsmis.errors import UserError
from fsmis.features.similarity import box_around_peak
from fsmis.methods.similarity_prompt import SimilarityPrompt
from fsmis.segmenters.sam2 import Sam2


class Sam2Box(SimilarityPrompt):
    """The box of the similar region around the most similar place. See :class:`SimilarityPrompt`.

    Args:
        segmenter, refine: see :class:`SimilarityPrompt`.
        threshold: see :func:`fsmis.features.similarity.box_around_peak`.

    Raises:
        UserError: ``threshold`` out of its range.
    """

    def __init__(self, segmenter: Sam2, refine: bool, threshold: float) -> None:
        super().__init__(segmenter, refine)
        if not 0 < threshold < 1:
            raise UserError(f"method.threshold={threshold}: must be between 0 and 1")
        self.threshold = threshold

    def prompts(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """See ``SimilarityPrompt.prompts``."""
        return box_around_peak(maps, self.threshold)
