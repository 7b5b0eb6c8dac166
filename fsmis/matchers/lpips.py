"""LPIPS of all pairs from one backbone pass an image (Zhang et al., arXiv 1801.03924)."""

from functools import cached_property

import numpy as np
import torch
from lpips import normalize_tensor
from torch import Tensor

from fsmis.errors import UserError
from fsmis.features.feature_cache import FeatureCache, fingerprint
from fsmis.matchers.backbones import BACKBONES, build_lpips
from fsmis.matchers.features import FeatureMatcher
from fsmis.matchers.images import to_tensor
from fsmis.segmenters.device import resolve_device
from fsmis.source import source_hash


class Lpips(FeatureMatcher[np.ndarray]):
    """Learned perceptual distance, equal to the ``lpips`` package's on every pair.

    LPIPS sums w_lc (a_lc - b_lc)^2 over layers l and channels c of unit-normalised feature maps
    and averages over positions; scaling each map by sqrt(w_lc / positions) makes it a squared
    Euclidean distance of one vector an image: 0.6 (alex), 2.2 (squeeze) or 8.0 (vgg) million floats
    at 256 x 256.

    Args:
        net: ``alex``, ``vgg`` or ``squeeze``.
        weights: see :func:`fsmis.matchers.backbones.build_lpips`.
        image_size: side in pixels images are resized to; None: as they are.
        batch_size: images of one backbone pass.
        device: see :func:`fsmis.segmenters.device.resolve_device`.
        seed: of ``weights=random``.
        cache: keeps the vectors of images; rounding in their last bit depends on the images that
            share a backbone pass, far below what :func:`fsmis.matching.nearest` takes as a tie.

    Raises:
        UserError: weights missing or unfit, here, before the first volume.
    """

    def __init__(
        self,
        net: str,
        weights: str,
        image_size: int | None,
        batch_size: int,
        device: str,
        seed: int,
        cache: FeatureCache | None = None,
    ):
        super().__init__(batch_size)
        self.device = resolve_device(device)
        self.model = build_lpips(net, weights, seed).to(self.device)
        self.min_size = BACKBONES[net].min_size
        self.net = net
        self.image_size = image_size
        self.cache = cache

    @cached_property
    def _fingerprint(self) -> str:
        code = source_hash(type(self))
        settings = {"lpips": self.net, "image_size": self.image_size, "code": code}
        return fingerprint(self.model, settings, self.device)

    def encode(self, slices: np.ndarray) -> Tensor:
        if self.cache is None:
            return super().encode(slices)

        def encode(images: np.ndarray) -> list[Tensor]:
            return [super(Lpips, self).encode(images)]

        return self.cache.reuse(self._fingerprint, slices, encode)[0].to(self.device)

    def vectors(self, slices: np.ndarray) -> Tensor:
        """Scaled feature vectors ``[B, F]``.

        Raises:
            UserError: images below the backbone's smallest size.
        """
        pixels = to_tensor(slices, self.image_size).to(self.device)[:, None]
        height, width = pixels.shape[-2:]
        if min(height, width) < self.min_size:
            raise UserError(
                f"images of {height} x {width} are too small for LPIPS with net {self.net}: at "
                f"least {self.min_size} pixels a side; set matcher.image_size"
            )
        maps = self.model.net(self.model.scaling_layer(2 * pixels.expand(-1, 3, -1, -1) - 1))
        return torch.cat(
            [
                (
                    normalize_tensor(layer) * (lin.model[-1].weight / layer[0, 0].numel()).sqrt()
                ).flatten(1)
                for layer, lin in zip(maps, self.model.lins, strict=True)
            ],
            dim=1,
        )
