"""SAM2's two-frame step in memory: encode an image, memorise (image, mask), segment given memories.

The same function as ``SAM2VideoPredictor`` on a video [support, query] with a mask prompt on the
support (Ravi et al., "SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714), but every
step is batched and each image is encoded once however many organs and slices use it.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from fsmis.errors import UserError
from fsmis.segmenters.cache import FeatureCache
from fsmis.segmenters.checkpoints import SHIPPED, load_weights
from fsmis.segmenters.features import Features, Memory
from fsmis.segmenters.network import Decoded, NetworkSegmenter, check_sizes
from fsmis.segmenters.steps import Steps

POOL = 2  # cells a side, see fsmis.segmenters.pooled_attention, which is imported with sam2 alone
POOLED_ATTENTION = "fsmis.segmenters.pooled_attention.PooledAttention"


class Sam2(Steps, NetworkSegmenter):
    """SAM2 or SAM2.1 as a segmenter of three calls.

    Args:
        architecture: see :func:`fsmis.segmenters.sam2.read_architecture`.
        checkpoint: Hugging Face hub id (``facebook/sam2.1-hiera-tiny``), a local ``.pt`` or
            ``.safetensors`` file, of Meta's or of transformers, ``sam2_mini.safetensors`` (shipped
            beside this file), or ``random`` (seeded weights, for tests and benchmarks).
        sha256: expected SHA-256 of the checkpoint file; null: not checked.
        image_size: side in pixels the network sees, a multiple of 32; published weights want 1024.
        mean, std: per-channel normalisation of [0, 1] pixels.
        overrides: changes to the architecture, dotted keys below ``model``.
        pool_memory: 2 averages 2 x 2 cells of a memory before it is attended to, 1 none; an
            approximation that saves time where memories are many or large.
        batch_size: rows, (query slice, organ) pairs, of one query step.
        encode_batch_size: images of one encoder pass; a CPU takes one at a time.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: see :class:`NetworkSegmenter`.
        seed: seed of the random weights.
        cache: keeps the features of images and the memories of labels; the weights must not change
            then.
        compile: ``torch.compile`` the encoder, here, not in the first scan; logits then differ by
            rounding. Inference only.

    Raises:
        UserError: bad size or batch, checkpoint missing, damaged or of another architecture, or
            nothing can be compiled here.

    Note:
        The public predictor also fills holes of up to 8 pixels in low-resolution masks, with a CUDA
        kernel that PyPI's ``sam2`` does not carry; like that package, this class leaves them.
    """

    def __init__(
        self,
        architecture: str,
        checkpoint: str,
        image_size: int,
        mean: list[float],
        std: list[float],
        overrides: dict[str, Any] | None = None,
        sha256: str | None = None,
        batch_size: int = 16,
        encode_batch_size: int = 4,
        device: str = "auto",
        seed: int = 0,
        cache: FeatureCache | None = None,
        compile: bool = False,
        pool_memory: int = 1,
        precision: str | None = None,
    ):
        check_sizes(image_size, 32, batch_size, encode_batch_size)
        if pool_memory not in (1, POOL):
            raise UserError(f"segmenter.pool_memory={pool_memory}: choose 1 or {POOL}")
        torch.manual_seed(seed)
        overrides = {"image_size": image_size, **(overrides or {})}
        if pool_memory == POOL:
            overrides["memory_attention.layer.cross_attention._target_"] = POOLED_ATTENTION
        self.architecture = read_architecture(architecture, overrides)
        model = instantiate(self.architecture)
        if checkpoint != "random":
            load_weights(model, checkpoint, sha256)
        super().__init__(
            model, image_size, mean, std, batch_size, encode_batch_size, device, precision, cache
        )
        if self.device.type == "cpu":
            self.model.image_encoder.to(memory_format=torch.channels_last)
        self.compiled = compile
        if compile:
            # made in the mode of `encode`: a tensor of another would be compiled for anew
            with torch.inference_mode(), self.autocast():
                blank = np.zeros((self.encode_batch_size, 1, 1), np.float32)
                compile_encoder(self.model, self.pixels(blank))

    def image_position(self, top: Tensor) -> Tensor:
        """See ``NetworkSegmenter.image_position``."""
        return self.model.image_encoder.neck.position_encoding(top)

    def memory_position(self, encoded: Tensor) -> Tensor:
        """See ``NetworkSegmenter.memory_position``."""
        return self.model.memory_encoder.position_encoding(encoded)

    def settings(self) -> dict[str, Any]:
        """See ``NetworkSegmenter.settings``."""
        return {"sam2": OmegaConf.to_container(self.architecture)}

    def follow(
        self, features: Features, support: list[Memory], past: list[Memory], num_frames: int
    ) -> tuple[Decoded, Memory]:
        """See ``NetworkSegmenter.follow``."""
        conditioned = self._conditioned(features, support, past, num_frames)
        low, iou, object_score, memory = self.answer_and_memory(conditioned, features)
        return (low, iou.amax(1, keepdim=True), object_score), memory


def compile_encoder(model: Any, pixels: Tensor) -> None:
    """Compile SAM2's encoder now, for batches the size of ``pixels`` ``[B, 3, S, S]``.

    Otherwise the first scan would do it and be timed with it. Weights keep their names. Raises
    UserError where it cannot be compiled on this machine.
    """
    # The trunk alone: the neck fills a dict of position encodings in its first pass, for which its
    # second would be compiled anew.
    model.image_encoder.trunk.compile(fullgraph=True, dynamic=False)
    try:
        model.forward_image(pixels)
    except RuntimeError as error:  # what all errors of torch.compile are
        reason = str(error).strip().split("\n\n")[0]
        raise UserError(
            f"segmenter.compile=true: torch.compile fails on {pixels.device} ({reason}); install "
            "a C++ compiler, and triton for CUDA, or set segmenter.compile=false"
        ) from error


def build_sam2(architecture: str, overrides: dict[str, Any]) -> torch.nn.Module:
    """SAM2's network with random weights, in eval mode; see :func:`read_architecture`."""
    return instantiate(read_architecture(architecture, overrides)).eval()


def read_architecture(architecture: str, overrides: dict[str, Any]) -> DictConfig:
    """The configuration that SAM2's network is instantiated from.

    Args:
        architecture: a config of the ``sam2`` package such as
            ``configs/sam2.1/sam2.1_hiera_t.yaml``, ``sam2_mini.yaml`` beside this file, or the path
            of a YAML of the same layout.
        overrides: dotted keys below ``model`` and their values.

    Raises:
        UserError: the config does not exist.
    """
    # Importing sam2 initialises Hydra globally, which would break a later @hydra.main; its own
    # builders rely on that, so the network is instantiated from the YAML here instead.
    hydra_was_free = not GlobalHydra.instance().is_initialized()
    import sam2

    if hydra_was_free:
        GlobalHydra.instance().clear()
    places = [Path(architecture), SHIPPED / architecture, Path(str(files(sam2))) / architecture]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"segmenter.architecture={architecture} is neither a file nor a config of the sam2 "
            "package; use e.g. configs/sam2.1/sam2.1_hiera_t.yaml"
        )
    config = OmegaConf.load(path)
    for key, value in overrides.items():
        OmegaConf.update(config.model, key, value, force_add=True)
    return config.model
