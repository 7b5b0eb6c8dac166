"""Distances of images for stage 2: SSIM, PSNR, normalised cross-correlation, and LPIPS."""

import warnings
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
from fsmis.pipeline.matching import FeatureMatcher, Matcher, to_tensor
from fsmis.segmenters.cache import FeatureCache, fingerprint
from fsmis.segmenters.checkpoints import read_state
from fsmis.segmenters.network import resolve_device
from fsmis.source import source_hash


class Psnr(FeatureMatcher[np.ndarray]):
    """Negative peak signal-to-noise ratio in dB, for a peak of 1.

    The ratio of identical images would be infinite; it is capped at ``cap_db``, which changes no
    other order. Images are resized to ``image_size`` pixels a side unless that is None.
    """

    def __init__(self, cap_db: float, image_size: int | None, batch_size: int):
        super().__init__(batch_size)
        self.smallest_error = 10 ** (-cap_db / 10)
        self.image_size = image_size

    def vectors(self, slices: np.ndarray) -> Tensor:
        """Pixels, scaled so that the squared distance is the mean squared error."""
        pixels = to_tensor(slices, self.image_size).flatten(1)
        return pixels / pixels.shape[1] ** 0.5

    def distance(self, queries: np.ndarray) -> Tensor:
        return 10 * super().distance(queries).clamp(min=self.smallest_error).log10()


class Ncc(FeatureMatcher[np.ndarray]):
    """1 - normalised cross-correlation, in [0, 2].

    A constant image has no correlation: it gets 0 with every image that is not constant and 1 with
    every one that is. Images are resized to ``image_size`` pixels a side unless that is None.
    """

    def __init__(self, image_size: int | None, batch_size: int):
        super().__init__(batch_size)
        self.image_size = image_size

    def vectors(self, slices: np.ndarray) -> Tensor:
        """Zero-mean vectors of norm sqrt(1/2), so that the squared distance is 1 - correlation; a
        constant image has only an extra last coordinate."""
        pixels = to_tensor(slices, self.image_size).flatten(1)
        constant = (pixels.amax(1) == pixels.amin(1))[:, None]
        centred = (pixels - pixels.mean(1, keepdim=True)).masked_fill(constant, 0)
        vectors = torch.cat([centred, constant.float()], dim=1)
        return torch.nn.functional.normalize(vectors) * 0.5**0.5


class Ssim(Matcher[np.ndarray]):
    """1 - structural similarity (Wang et al. 2004), as ``skimage.metrics.structural_similarity``
    computes it by default: uniform window, sample covariance, data range 1.

    Means and variances are computed once for each image, only the covariance for every pair.
    ``window`` is odd, in pixels; images are resized to ``image_size`` pixels a side unless that is
    None. Raises UserError for an image smaller than the window.
    """

    C1, C2 = 0.01**2, 0.03**2  # of a data range of 1, by the definition

    def __init__(self, window: int, image_size: int | None):
        if window < 3 or window % 2 == 0:
            raise UserError(f"matcher.window={window}; use an odd number of pixels, at least 3")
        self.window = window
        self.image_size = image_size

    def fit(self, support: np.ndarray) -> None:
        self._copies = self._statistics(support)

    def distance(self, queries: np.ndarray) -> Tensor:
        statistics = zip(*self._statistics(queries), strict=True)
        return torch.stack([1 - self._similarity(*query) for query in statistics])

    def _statistics(self, images: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        pixels = to_tensor(images, self.image_size)
        if min(pixels.shape[1:]) < self.window:
            raise UserError(
                f"images of {pixels.shape[1]} x {pixels.shape[2]} are smaller than "
                f"matcher.window={self.window}; set a smaller one"
            )
        mean = self._mean(pixels)
        return pixels, mean, self._unbiased(self._mean(pixels.square()) - mean.square())

    def _similarity(self, pixels: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        copies, means, variances = self._copies
        product = mean * means
        covariance = self._unbiased(self._mean(pixels * copies) - product)
        luminance = (2 * product + self.C1) / (mean.square() + means.square() + self.C1)
        structure = (2 * covariance + self.C2) / (variance + variances + self.C2)
        return (luminance * structure).mean(dim=(1, 2), dtype=torch.float64)

    def _unbiased(self, moment: Tensor) -> Tensor:
        return moment * (self.window**2 / (self.window**2 - 1))

    def _mean(self, maps: Tensor) -> Tensor:
        """Mean over every whole window; sums of shifted maps beat pooling on a CPU sixfold."""
        for axis in (-1, -2):
            size = maps.shape[axis] - self.window + 1
            total = maps.narrow(axis, 0, size).clone()
            for shift in range(1, self.window):
                total += maps.narrow(axis, shift, size)
            maps = total
        return maps / self.window**2


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
