"""ImageNet backbones of LPIPS: their weights, found and checked before any volume is read."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import lpips
import torch
from torch import Tensor
from torchvision.models import get_weight

from fsmis.errors import UserError
from fsmis.files import read_state


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
