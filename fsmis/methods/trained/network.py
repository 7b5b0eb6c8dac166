"""Image encoder: the residual stages of a torchvision ResNet, dilated where strides are held."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fsmis.errors import UserError
from fsmis.segmenters.checkpoints import read_state

STRIDES = "method.training.encoder.strides"
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")


@dataclass(frozen=True)
class EncoderSettings:
    """How an encoder is built; see ``conf/episodic/default.yaml``.

    Attributes:
        backbone: one of ``BACKBONES``.
        weights: None for random ones, or a torchvision file of the ResNet itself or of DeepLabV3 or
            FCN on it, whose ``backbone.`` is taken.
        strides: image pixels for each step on the feature map after every stage that is kept;
            torchvision's are 4, 8, 16, 32.
        channels: of the features, after a 1 x 1 convolution.
        mean, std: subtracted from the pixels in [0, 1], then divided by.
    """

    backbone: str
    weights: str | None
    strides: Sequence[int]
    channels: int
    mean: float
    std: float


class Encoder(nn.Module):
    """Features of the last ``levels`` stages, coarse last, each projected to ``channels``.

    The literature reads ResNet-101 at stride 8: a stage that must not halve the map convolves with
    twice the dilation (Chen et al., DeepLabV3, 2017). torchvision offers this for bottleneck
    networks only, so strides and dilations are set here on the built stages: ResNet-18 works too,
    and torchvision's weights load unchanged. UserError for bad strides, backbone or weights.
    """

    def __init__(self, settings: EncoderSettings, levels: int = 1) -> None:
        super().__init__()
        if settings.backbone not in BACKBONES:
            raise UserError(
                f"method.training.encoder.backbone={settings.backbone}: choose of {BACKBONES}"
            )
        resnet = getattr(torchvision.models, settings.backbone)(weights=None)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        stages = [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
        if not levels <= len(settings.strides) <= len(stages):
            raise UserError(f"{STRIDES}={list(settings.strides)}: give {levels} to 4 numbers")
        if settings.weights is not None:
            _load(resnet, settings.weights)
        stride, dilation = 4, 1
        for stage, wanted in zip(stages, [int(s) for s in settings.strides], strict=False):
            native = stride if stage is stages[0] else 2 * stride
            if wanted == native:
                _set_dilation(stage, dilation)
            elif wanted == stride:
                dilation *= 2
                _hold_stride(stage, dilation)
            else:
                raise UserError(
                    f"{STRIDES}={list(settings.strides)}: the first is 4, each other the one "
                    "before it or twice that"
                )
            stride = wanted
        self.stages = nn.ModuleList(stages[: len(settings.strides)])
        widths = [_width(stage) for stage in self.stages[-levels:]]
        self.projections = nn.ModuleList(nn.Conv2d(w, settings.channels, 1) for w in widths)
        self.channels = settings.channels
        self.mean, self.std = settings.mean, settings.std

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features ``[B, C, h, w]`` of each level for images float32 ``[B, H, W]`` in [0, 1]."""
        grey = ((images - self.mean) / self.std)[:, None].expand(-1, 3, -1, -1)
        maps = [self.stem(grey.contiguous(memory_format=torch.channels_last))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        last = maps[-len(self.projections) :]
        return tuple(project(map_) for project, map_ in zip(self.projections, last, strict=True))


def _convolutions(stage: nn.Module) -> list[nn.Conv2d]:
    return [module for module in stage.modules() if isinstance(module, nn.Conv2d)]


def _set_dilation(stage: nn.Module, dilation: int) -> None:
    for conv in _convolutions(stage):
        if conv.kernel_size == (3, 3):
            conv.dilation = conv.padding = (dilation, dilation)


def _hold_stride(stage: nn.Module, dilation: int) -> None:
    """Remove the stride from a stage; the convolution that had it keeps the previous dilation."""
    strided = [conv for conv in _convolutions(stage) if conv.stride == (2, 2)]
    _set_dilation(stage, dilation)
    for conv in strided:
        conv.stride = (1, 1)
        if conv.kernel_size == (3, 3):
            conv.dilation = conv.padding = (dilation // 2, dilation // 2)


def _width(stage: nn.Module) -> int:
    return [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features


def _load(resnet: nn.Module, weights: str) -> None:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise UserError(
            f"method.training.encoder.weights={weights}: no such file; null trains from scratch"
        )
    given = {name.removeprefix("backbone."): value for name, value in read_state(path).items()}
    own = {name: value for name, value in resnet.state_dict().items() if name[:3] != "fc."}
    wrong = [n for n in own if n not in given or given[n].shape != own[n].shape]
    if wrong:
        raise UserError(
            f"{path} does not fit method.training.encoder.backbone: {len(wrong)} tensors differ, "
            f"the first is {wrong[0]}; take torchvision's file of that backbone or of a DeepLabV3 "
            "on it"
        )
    resnet.load_state_dict({name: given[name] for name in own}, strict=False)


Features = tuple[Tensor, ...]  # [B, C, h, w] for each level of the encoder


@dataclass(frozen=True, eq=False)
class Episodes:
    """Pairs of slices with pseudo-classes: E = B * K episodes that share B encodings.

    Images are float32 [B, H, W] in [0, 1], masks bool [B, K, H, W].
    """

    support: Tensor
    support_masks: Tensor
    query: Tensor
    query_masks: Tensor


class EpisodicNetwork(nn.Module, ABC):
    """Compare a query with a labelled support; its parameters are all that training changes.

    ``background_weight`` weights background pixels in the cross-entropy; foreground has 1.
    """

    def __init__(self, encoder: Encoder, background_weight: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.class_weights: Tensor
        self.register_buffer("class_weights", torch.tensor([background_weight, 1.0]))

    @abstractmethod
    def compare(self, support: Features, masks: Tensor, query: Features) -> Tensor:
        """Segment E queries, each by its own support.

        Args:
            support: features ``[E, C, h, w]`` of each level; ``query`` likewise.
            masks: weights float ``[E, H, W]`` in [0, 1] on the support image's grid.

        Returns:
            logits ``[E, 2, h, w]`` of background and foreground.
        """

    def regularisation(self) -> dict[str, Tensor]:
        return {}

    def losses(self, episodes: Episodes) -> dict[str, Tensor]:
        """Terms of the training loss, by name; their sum is minimised.

        ``segmentation`` is the cross-entropy of the query. ``alignment`` is that of the support,
        segmented in turn from the query and its prediction (PANet, section 3.4).
        """
        pairs, classes = episodes.support_masks.shape[:2]
        features = self.encoder(torch.cat([episodes.support, episodes.query]))
        repeated = [level.repeat_interleave(classes, 0) for level in features]
        support = tuple(level[: pairs * classes] for level in repeated)
        query = tuple(level[pairs * classes :] for level in repeated)
        support_masks = episodes.support_masks.flatten(0, 1)
        query_masks = episodes.query_masks.flatten(0, 1)
        size = query_masks.shape[-2:]
        logits = upsampled(self.compare(support, support_masks.float(), query), size)
        predicted = is_foreground(logits.detach()).float()
        # without a predicted pixel there is nothing to segment the support by
        found = predicted.any(2).any(1)
        back = upsampled(self.compare(query, predicted, support), size)
        return {
            "segmentation": self._cross_entropy(logits, query_masks),
            "alignment": self._cross_entropy(back[found], support_masks[found])
            if found.any()
            else logits.sum() * 0,
            **self.regularisation(),
        }

    def _cross_entropy(self, logits: Tensor, masks: Tensor) -> Tensor:
        return F.cross_entropy(logits, masks.long(), self.class_weights)


def upsampled(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def is_foreground(logits: Tensor) -> Tensor:
    return logits[:, 1] > logits[:, 0]
