"""ALPNet's classifier on frozen features."""

from torch import Tensor

from fsmis.errors import UserError
from fsmis.features.prototypes import alpnet_logits
from fsmis.methods.frozen_prototypes import FrozenPrototypes
from fsmis.segmenters.sam2 import Sam2


class ALPNetFrozen(FrozenPrototypes):
    """Adaptive local prototypes (Ouyang et al., SSL-ALPNet, ECCV 2020).

    Args:
        segmenter, level: see :class:`FrozenPrototypes`.
        window: side of the windows that give a local prototype each, in cells of the level.
        threshold: part of a window that a class must cover for its prototype to count.

    Raises:
        UserError: a setting out of its range.
    """

    def __init__(self, segmenter: Sam2, level: int, window: int, threshold: float) -> None:
        super().__init__(segmenter, level)
        if not isinstance(window, int) or window < 1:
            raise UserError(f"method.window={window}: must be a whole number, 1 or more")
        if not 0 <= threshold < 1:
            raise UserError(f"method.threshold={threshold}: must be in [0, 1)")
        self.window = window
        self.threshold = threshold

    def logits(self, support: Tensor, foreground: Tensor, query: Tensor) -> Tensor:
        """See ``FrozenPrototypes.logits``."""
        return alpnet_logits(support, foreground, query, self.window, self.threshold)
