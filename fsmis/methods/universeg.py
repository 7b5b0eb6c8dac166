"""UniverSeg: a network that takes labelled slices as an input, trained by its authors.

Butoi et al., "UniverSeg: Universal Medical Image Segmentation", ICCV 2023. The package
``universeg`` and its weights are the user's to install.
"""

from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.methods.base import Method
from fsmis.pipeline.matching import to_tensor
from fsmis.segmenters.checkpoints import read_state
from fsmis.segmenters.features import batches
from fsmis.segmenters.network import resolve_device

INSTALL = "pip install git+https://github.com/JJGO/UniverSeg.git"


class UniverSeg(Method):
    """All labelled slices of an organ are the support set of each of its query slices.

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
            labels = (self._pixels(task.support_masks) >= 0.5).float()[None]
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
