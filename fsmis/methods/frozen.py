"""Frozen networks that are shown a labelled slice and the query, with nothing trained here.

The segmenter's own features, for what their prototypes are worth; and UniverSeg, which takes
labelled slices as an input. Its package ``universeg`` and weights are the user's to install.
"""

from abc import abstractmethod
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.methods import Method
from fsmis.pipeline.matching import to_tensor
from fsmis.pipeline.prompting import EncodedEpisode, support_of_each_slice
from fsmis.segmenters import Segmenter
from fsmis.segmenters.checkpoints import read_state
from fsmis.segmenters.features import alpnet_logits, batches, firm, on_grid, panet_logits
from fsmis.segmenters.network import resolve_device


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


INSTALL = "pip install git+https://github.com/JJGO/UniverSeg.git"


class UniverSeg(Method):
    """All labelled slices of an organ are the support set of each of its query slices.

    Butoi et al., "UniverSeg: Universal Medical Image Segmentation", ICCV 2023; trained by them.

    Args:
        weights: the file of the authors' release, or ``random`` (for tests).
        image_size: side in pixels that the network sees, 128 for the authors' weights.
        batch_size: query slices of one pass.
        device: see :func:`fsmis.segmenters.network.resolve_device`.
        seed: of random weights.

    Raises:
        UserError: the package or the weights are missing, or not of this network.
    """

    def __init__(
        self, weights: str | None, image_size: int, batch_size: int, device: str, seed: int
    ) -> None:
        try:
            build = import_module("universeg").universeg
        except ImportError as error:
            raise UserError(f"method=universeg: its package is missing; {INSTALL}") from error
        if weights is None:
            raise UserError(
                "method.weights=null: give the file of weights, universeg_v1_nf64_ss64_STA.pt of "
                "https://github.com/JJGO/UniverSeg/releases"
            )
        torch.manual_seed(seed)
        self.network = build(pretrained=False).eval()
        if weights != "random":
            try:
                self.network.load_state_dict(read_state(Path(weights).expanduser()))
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"method.weights={weights}: not of UniverSeg ({reason})") from error
        self.device = resolve_device(device)
        self.network.to(self.device).requires_grad_(False)
        self.image_size = image_size
        self.batch_size = batch_size

    @torch.inference_mode()
    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """See ``Method.segment``."""
        size = episode.query.image.shape[1:]
        masks = {}
        for organ, task in episode.organs.items():
            images = self._pixels(episode.support.image[task.support_slices])[None]
            labels = firm(self._pixels(task.support_masks))[None]
            found = []
            for slices in batches(task.query_slices, self.batch_size):
                support = (part.expand(len(slices), -1, -1, -1, -1) for part in (images, labels))
                logits = self.network(self._pixels(episode.query.image[slices]), *support)
                found.append(F.interpolate(logits, size, mode="bilinear")[:, 0] > 0)
            masks[organ] = torch.cat(found).cpu().numpy()
        return masks

    def _pixels(self, slices: np.ndarray) -> torch.Tensor:
        """Float ``[B, 1, S, S]`` of images or masks ``[B, H, W]``."""
        return to_tensor(slices, self.image_size)[:, None].to(self.device)
