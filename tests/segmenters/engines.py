"""Every engine, small, with seeded random weights that answer to image and mask."""

from functools import cache
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from fsmis.cli import CONF_DIR
from fsmis.segmenters.network import NetworkSegmenter
from fsmis.tools.bench.ways import make_responsive

SMALL_HIERA = {
    "vision_config": {
        "model_type": "sam2_vision_model",
        "backbone_channel_list": [256, 128, 64, 32],
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 32,
            "embed_dim_per_stage": [32, 64, 128, 256],
        },
    }
}
SMALL_VIT = {
    "vision_config": {
        "model_type": "sam3_vision_model",
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "global_attn_indexes": [1],
        },
    }
}
# by the name of the file in conf/segmenter: what makes it small
ENGINES: dict[str, dict[str, Any]] = {
    "sam2_mini": {"image_size": 64},
    "sam2_tiny": {"image_size": 64},
    "sam2.1_tiny": {"image_size": 64},
    "medsam2": {"image_size": 64},
    "transformers_sam2.1_tiny": {"image_size": 64, "architecture": SMALL_HIERA},
    "edgetam": {"image_size": 256},
    "sam3_tracker": {"image_size": 112, "architecture": SMALL_VIT},
}


def configured(name: str) -> dict[str, Any]:
    """The settings of a file in conf/segmenter, as composed."""
    overrides = [f"segmenter={name}", "device=cpu", "cache.dir=null"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("config", overrides)
    settings = OmegaConf.to_container(config, resolve=True)["segmenter"]
    return settings | {"checkpoint": "random", "cache": None}


def build(name: str, **changes: Any) -> NetworkSegmenter:
    """An engine, small, with changes to its settings."""
    settings = configured(name) | ENGINES[name] | changes
    segmenter = instantiate(settings, _convert_="all")
    enliven(segmenter.model)
    return segmenter


def enliven(model: nn.Module, seed: int = 1) -> None:
    """Let random weights answer to image and mask; those of transformers start near 0."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.reset_parameters()
    make_responsive(model, seed)


@cache
def shared(name: str) -> NetworkSegmenter:
    """An engine that several tests read."""
    return build(name)


def frames(count: int, size: tuple[int, int] = (100, 90)) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 ``[count, H, W]`` of waves, and a disc on each, no two alike."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]]
    images, masks = [], []
    for index in range(count):
        waves = sum(
            np.sin(x / rng.uniform(3, 20) + y / rng.uniform(3, 20) + rng.uniform(0, 6))
            for _ in range(6)
        )
        images.append((waves - waves.min()) / np.ptp(waves))
        centre = rng.uniform(0.3, 0.7, 2) * size
        masks.append((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (8 + 5 * index) ** 2)
    return ((np.stack(images) * 255).round() / 255).astype(np.float32), np.stack(masks)
