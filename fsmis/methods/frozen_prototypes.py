"""What prototypes of the segmenter's own features are worth without any training."""

from abc import abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.methods.base import Method
from fsmis.pipeline.prompting import EncodedEpisode, support_of_each_slice
from fsmis.segmenters.base import Segmenter
from fsmis.segmenters.features import alpnet_logits, on_grid, panet_logits


class FrozenPrototypes(Method):
    """Compare query features with prototypes of organ and background on the support slice.

    Each organ is a binary problem. ``level`` is an index into ``Features.levels``; -1 is the
    coarsest, the image embedding.
    """

    def __init__(self, segmenter: Segmenter, level: int) -> None:
        self.segmenter = segmenter
        self.level = level

    @abstractmethod
    def logits(self, support: Tensor, foreground: Tensor, query: Tensor) -> Tensor:
        """Logits of background and organ, ``[B, 2, h, w]``, of B query slices.

        Args:
            support: features ``[B, C, h, w]`` of each query slice's support slice.
            foreground: share of each cell that the organ covers there, ``[B, h, w]``.
            query: features ``[B, C, h, w]``.
        """

    @torch.inference_mode()
    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        encoded = EncodedEpisode.encode(self.segmenter, episode)
        supports, queries = self._maps(encoded.supports.levels), self._maps(encoded.queries.levels)
        size = episode.query.image.shape[1:]
        masks = {}
        for organ, task in episode.organs.items():
            mask = torch.as_tensor(task.support_masks, device=queries.device)
            foreground = on_grid(mask, supports.shape[-2:])
            support = supports[encoded.support_rows(task)]
            logits = self.logits(
                support[task.part], foreground[task.part], queries[encoded.query_rows(task)]
            )
            margin = logits[:, 1:] - logits[:, :1]
            resized = F.interpolate(margin, size, mode="bilinear", align_corners=False)
            masks[organ] = (resized[:, 0] > 0).cpu().numpy()
        self.matches = support_of_each_slice(episode)
        return masks

    def _maps(self, levels: list[Tensor]) -> Tensor:
        if not -len(levels) <= self.level < len(levels):
            raise UserError(
                f"method.level={self.level}: the segmenter has {len(levels)} levels, use "
                f"-{len(levels)} to {len(levels) - 1}"
            )
        return levels[self.level].float()


class ALPNetFrozen(FrozenPrototypes):
    """Adaptive local prototypes (Ouyang et al., SSL-ALPNet, ECCV 2020).

    Args:
        window: side, in cells, of the windows that give one local prototype each; 1 or more.
        threshold: share of a window, in [0, 1), that a class must cover for its prototype to count.
    """

    def __init__(self, segmenter: Segmenter, level: int, window: int, threshold: float) -> None:
        super().__init__(segmenter, level)
        if not isinstance(window, int) or window < 1:
            raise UserError(f"method.window={window}: must be a whole number, 1 or more")
        if not 0 <= threshold < 1:
            raise UserError(f"method.threshold={threshold}: must be in [0, 1)")
        self.window = window
        self.threshold = threshold

    def logits(self, support: Tensor, foreground: Tensor, query: Tensor) -> Tensor:
        return alpnet_logits(support, foreground, query, self.window, self.threshold)


class PANetFrozen(FrozenPrototypes):
    """One prototype for each class (Wang et al., PANet, ICCV 2019)."""

    def logits(self, support: Tensor, foreground: Tensor, query: Tensor) -> Tensor:
        return panet_logits(support, foreground, query)
