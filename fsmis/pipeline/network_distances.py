"""Distances of feature maps: LPIPS, and the features of the segmenter's own encoder."""

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlparse

import lpips
import numpy as np
import torch
from lpips import normalize_tensor
from torch import Tensor
from torchvision.models import get_weight

from fsmis.errors import UserError
from fsmis.pipeline.matching import Matcher, Slices, to_tensor
from fsmis.segmenters.cache import FeatureCache, fingerprint
from fsmis.segmenters.checkpoints import read_state
from fsmis.segmenters.features import Features
from fsmis.segmenters.network import resolve_device
from fsmis.source import source_hash


class FeatureMatcher(Matcher[Slices]):
    """One vector for each image, one matrix product for all S x N pairs.

    The vectors of the fewer, copies or queries, are kept (F float32 each), the others streamed in
    batches, so that memory does not grow with the support set.

    Attributes:
        images_encoded: images whose vectors were computed, over all calls.
    """

    def __init__(self, batch_size: int):
        if batch_size < 1:
            raise UserError(f"matcher.batch_size={batch_size}: choose 1 or more")
        self.batch_size = batch_size
        self.images_encoded = 0

    @abstractmethod
    def vectors(self, slices: Slices) -> Tensor:
        """Vectors float32 ``[B, F]`` of B images."""

    def encode(self, slices: Slices) -> Tensor:
        """``vectors``, counted in ``images_encoded``."""
        self.images_encoded += len(slices)
        return self.vectors(slices)

    def fit(self, support: Slices) -> None:
        self._support: Slices = support

    @torch.inference_mode()
    def distance(self, queries: Slices) -> Tensor:
        if len(queries) > len(self._support):
            return self._pairs(self._support, queries).T
        return self._pairs(queries, self._support)

    def _pairs(self, kept: Slices, streamed: Slices) -> Tensor:
        """Squared distances ``[len(kept), len(streamed)]``."""
        # Joining parts would hold them twice.
        vectors = torch.empty(0)
        for start in range(0, len(kept), self.batch_size):
            batch = self.encode(kept[start : start + self.batch_size])
            if not start:
                vectors = batch.new_empty(len(kept), batch.shape[1])
            vectors[start : start + self.batch_size] = batch
        columns = [
            squared_distances(vectors, self.encode(streamed[start : start + self.batch_size]))
            for start in range(0, len(streamed), self.batch_size)
        ]
        return torch.cat(columns, dim=1)


def squared_distances(queries: Tensor, copies: Tensor, columns: int = 8192) -> Tensor:
    """Squared Euclidean distances float64 ``[S, N]`` of the rows of ``[S, F]`` and ``[N, F]``.

    In float32, |a|^2 + |b|^2 - 2 a.b loses near-duplicates to cancellation; float64 keeps them,
    ``columns`` features at a time to bound memory.
    """
    if queries.device.type == "mps":  # which has no float64
        queries, copies = queries.cpu(), copies.cpu()
    total = torch.zeros(len(queries), len(copies), dtype=torch.float64, device=queries.device)
    for a, b in zip(queries.split(columns, 1), copies.split(columns, 1), strict=True):
        a, b = a.double(), b.double()
        total += a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return total.clamp_(min=0)


class EncoderFeatures(FeatureMatcher[Features]):
    """Mean over positions of 1 - cosine of two images' feature vectors, in [0, 2].

    ``level`` is an index into ``Features.levels``; -1 is the coarsest, the image embedding. Raises
    UserError where the segmenter has no such level.
    """

    on_features = True

    def __init__(self, level: int, batch_size: int):
        super().__init__(batch_size)
        self.level = level

    def vectors(self, slices: Features) -> Tensor:
        """Unit feature vectors of all positions, ``[B, C x h x w]``, scaled so that the squared
        distance is the mean of 1 - cosine."""
        levels = len(slices.levels)
        if not -levels <= self.level < levels:
            raise UserError(
                f"matcher.level={self.level}; the segmenter has {levels} levels, use -{levels} to "
                f"{levels - 1}"
            )
        maps = torch.nn.functional.normalize(slices.levels[self.level].float())
        positions = maps[0, 0].numel()
        return maps.flatten(1) * (0.5 / positions) ** 0.5


class Lpips(FeatureMatcher[np.ndarray]):
    """Learned perceptual distance, equal to the ``lpips`` package's on every pair.

    LPIPS sums w_lc (a_lc - b_lc)^2 over layers l and channels c of unit-normalised feature maps
    and averages over positions. Scaling each map by sqrt(w_lc / positions) makes it a squared
    Euclidean distance of one vector per image: 0.6 (alex), 2.2 (squeeze) or 8.0 (vgg) million
    floats at 256 x 256.

    Args:
        net: ``alex``, ``vgg`` or ``squeeze``.
        weights: see :func:`build_lpips`; UserError, before the first volume, where they are missing
            or do not fit.
        image_size: side in pixels to which images are resized; None: as they are.
        seed: of ``weights=random``.
        cache: keeps the vectors of images. Their last bit depends on the images that share a
            batch, far below what :func:`fsmis.pipeline.matching.nearest` takes as a tie.
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
        """Scaled vectors ``[B, F]``; UserError for images below the backbone's smallest size."""
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


@dataclass(frozen=True)
class Backbone:
    """torchvision's name of the weights, and the smallest image side, in pixels, for LPIPS."""

    weights: str
    min_size: int

    @property
    def url(self) -> str:
        return get_weight(self.weights).url

    @property
    def file(self) -> Path:
        """Where torchvision keeps the weights; ``TORCH_HOME`` moves it."""
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(self.url).path).name


BACKBONES = {
    "alex": Backbone("AlexNet_Weights.IMAGENET1K_V1", min_size=31),
    "vgg": Backbone("VGG16_Weights.IMAGENET1K_V1", min_size=16),
    "squeeze": Backbone("SqueezeNet1_1_Weights.IMAGENET1K_V1", min_size=17),
}


def build_lpips(net: str, weights: str, seed: int) -> lpips.LPIPS:
    """LPIPS of the ``lpips`` package (version 0.1, its own linear weights), in eval mode.

    ``net`` is ``alex``, ``vgg`` or ``squeeze``; ``weights`` of the backbone are ``torchvision``
    (downloaded once, then cached), a local file of the same layout, or ``random``, as in
    ``torch.manual_seed(seed); lpips.LPIPS(pnet_rand=True)``. UserError where they do not fit.
    """
    if net not in BACKBONES:
        raise UserError(f"matcher.net={net}; use {', '.join(BACKBONES)}")
    # The package builds its backbone with arguments that torchvision has deprecated.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    if weights != "random":
        state = _download(net) if weights == "torchvision" else _read(Path(weights).expanduser())
        _load(model.net, state, net, weights)
    return model.eval().requires_grad_(False)


def _download(net: str) -> dict[str, Tensor]:
    backbone = BACKBONES[net]
    if not backbone.file.is_file():
        try:
            backbone.file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                backbone.url, str(backbone.file), hash_prefix=backbone.file.stem.split("-")[-1]
            )
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"LPIPS backbone {backbone.file} is missing and {backbone.url} cannot be fetched "
                f"({error}); put that file there, pass matcher.weights=<file>, or use "
                "matcher=encoder_features, which needs no download"
            ) from error
    return read_state(backbone.file)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"matcher.weights={path} does not exist; give a file that torchvision publishes, or "
            "use matcher.weights=torchvision or matcher=encoder_features"
        )
    return read_state(path)


def _load(model: torch.nn.Module, state: dict[str, Tensor], net: str, weights: str) -> None:
    """Load torchvision's ``features.3.weight`` into LPIPS's ``slice2.3.weight``."""
    renamed = {}
    for name, own in model.state_dict().items():
        tensor = state.get(f"features.{name.split('.', 1)[1]}")
        if tensor is None or tensor.shape != own.shape:
            raise UserError(
                f"matcher.weights={weights} does not fit matcher.net={net} ({name} differs); use "
                f"the file of torchvision's {BACKBONES[net].weights}"
            )
        renamed[name] = tensor
    model.load_state_dict(renamed)
