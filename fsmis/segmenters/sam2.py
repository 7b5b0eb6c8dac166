"""SAM2's two-frame step in memory: encode an image, memorise (image, mask), segment given memories.

The same function as ``SAM2VideoPredictor`` on a video [support, query] with a mask prompt on the
support (Ravi et al., "SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714), but every
step is batched and each image is encoded once however many organs and slices use it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from fsmis.errors import UserError
from fsmis.segmenters.answer import Answer, resized
from fsmis.segmenters.architecture import read_architecture
from fsmis.segmenters.cache import FeatureCache, fingerprint, key
from fsmis.segmenters.checkpoints import load_weights
from fsmis.segmenters.device import compile_encoder, resolve_device
from fsmis.segmenters.features import Features, Memory, batches, to_frames
from fsmis.segmenters.steps import Steps
from fsmis.source import source_hash


class Sam2(Steps):
    """SAM2 or SAM2.1 as a segmenter of three calls.

    Args:
        architecture: see :func:`fsmis.segmenters.architecture.read_architecture`.
        checkpoint: Hugging Face hub id (``facebook/sam2.1-hiera-tiny``), a local ``.pt`` or
            ``.safetensors`` file, of Meta's or of transformers, ``sam2_mini.safetensors`` (shipped
            beside this file), or ``random`` (seeded weights, for tests and benchmarks).
        sha256: expected SHA-256 of the checkpoint file; null: not checked.
        image_size: side in pixels the network sees, a multiple of 32; published weights want 1024.
        mean, std: per-channel normalisation of [0, 1] pixels.
        overrides: changes to the architecture, dotted keys below ``model``.
        batch_size: rows, (query slice, organ) pairs, of one query step.
        encode_batch_size: images of one encoder pass; a CPU takes one at a time.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
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
    ):
        if image_size % 32 or image_size <= 0:
            raise UserError(f"segmenter.image_size={image_size} is not a multiple of 32")
        if batch_size < 1 or encode_batch_size < 1:
            raise UserError(
                f"segmenter.batch_size={batch_size}, encode_batch_size={encode_batch_size}: choose "
                "1 or more"
            )
        torch.manual_seed(seed)
        overrides = {"image_size": image_size, **(overrides or {})}
        self.architecture = read_architecture(architecture, overrides)
        self.model: Any = instantiate(self.architecture).eval()
        if checkpoint != "random":
            load_weights(self.model, checkpoint, sha256)
        self.device = resolve_device(device)
        self.model.to(self.device).requires_grad_(False)
        if self.device.type == "cpu":
            self.model.image_encoder.to(memory_format=torch.channels_last)
        self.image_size = image_size
        self.mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        self.batch_size = batch_size
        # On a CPU rounding depends on which images share a pass, and a cache must change nothing.
        self.encode_batch_size = 1 if self.device.type == "cpu" else encode_batch_size
        self.cache = cache
        self.images_encoded = 0
        self.compiled = compile
        if compile:
            # made in the mode of `encode`: a tensor of another would be compiled for anew
            with torch.inference_mode(), self.autocast():
                blank = np.zeros((self.encode_batch_size, 1, 1), np.float32)
                compile_encoder(self.model, self.pixels(blank))

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> Features:
        """Image features of float32 ``[B, H, W]`` in [0, 1]; each image passes the encoder once."""
        if self.cache is None:
            keys, levels = None, self._encode(images)
        else:
            keys = np.array([key(self._fingerprint, image) for image in images])
            levels = self.cache.reuse_rows(keys, lambda rows: self._encode(images[rows]))
        levels = [level.to(self.device, memory_format=torch.channels_last) for level in levels]
        position = self.model.image_encoder.neck.position_encoding(levels[-1][:1])
        return Features(levels, position.to(levels[-1].dtype), keys)

    def _encode(self, images: np.ndarray) -> list[Tensor]:
        size = self.encode_batch_size
        # What is compiled knows one size of batch: the last is filled up with the last image.
        missing = -len(images) % size if self.compiled else 0
        filled = np.pad(images, ((0, missing), (0, 0), (0, 0)), "edge")
        with self.autocast():
            parts = [self.features(self.pixels(batch)) for batch in batches(filled, size)]
        self.images_encoded += len(images)
        return Features.cat(parts)[: len(images)].levels

    @cached_property
    def _fingerprint(self) -> str:
        pixels = [self.mean.tolist(), self.std.tolist()]
        architecture = OmegaConf.to_container(self.architecture)
        code = source_hash(type(self))
        settings = {"sam2": architecture, "pixels": pixels, "compiled": self.compiled, "code": code}
        return fingerprint(self.model, settings, self.device)

    @torch.inference_mode()
    def memorise(self, features: Features, masks: np.ndarray, labelled: bool = True) -> Memory:
        """Memories of bool masks ``[B, H, W]`` on images whose features are given (B rows).

        Args:
            features: of the images.
            masks: what they show.
            labelled: the masks are labels, which prompt in other runs too, and no predictions: the
                cache keeps their memories.
        """
        # one at a time on a CPU, as images pass the encoder
        size = 1 if labelled and self.device.type == "cpu" else len(masks)

        def compute(rows: np.ndarray) -> list[Tensor]:
            parts = [self._memorise(features[some], masks[some]) for some in batches(rows, size)]
            memory = Memory.cat(parts)
            return [memory.features.contiguous(), memory.pointer]

        if labelled and self.cache is not None and features.keys is not None:
            pairs = zip(features.keys, masks, strict=True)
            keys = [key(f"memory {image}", mask) for image, mask in pairs]
            kept = self.cache.reuse_rows(keys, compute)
        else:
            kept = compute(np.arange(len(masks)))
        encoded, pointer = (tensor.to(self.device) for tensor in kept)
        position = self.model.memory_encoder.position_encoding(encoded[:1])
        return Memory(encoded, position.to(self.precision), pointer)

    def _memorise(self, features: Features, masks: np.ndarray) -> Memory:
        mask = torch.as_tensor(masks, device=self.device)[:, None].float()
        size = (self.image_size, self.image_size)
        if mask.shape[-2:] != size:
            mask = F.interpolate(mask, size, mode="bilinear", antialias=True)
        # A mask of a pixel or two would vanish at 0.5, and an empty prompt asks for nothing.
        threshold = mask.amax((1, 2, 3), keepdim=True).clamp(min=1e-6, max=0.5)
        with self.autocast():
            return self.memory(features, (mask >= threshold).float())

    @torch.inference_mode()
    def segment(self, features: Features, memories: list[Memory], size: tuple[int, int]) -> Answer:
        """Masks of the query images, B rows.

        Args:
            features: of the query images, B rows.
            memories: one or more support frames, each with B rows.
            size: (H, W) of the logits.
        """
        with self.autocast():
            mask, iou, object_score = self.decode(features, memories)
        return _answer(mask, iou[:, 0], object_score, size)

    @property
    def precision(self) -> torch.dtype:
        """Of inference: bfloat16 where the device is CUDA."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def autocast(self) -> torch.autocast:
        """Inference in its precision."""
        enabled = self.precision is torch.bfloat16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def pixels(self, images: np.ndarray) -> Tensor:
        """Network input ``[B, 3, S, S]`` of images in [0, 1]."""
        frames = torch.from_numpy(to_frames(images, self.image_size)).to(self.device)
        grey = frames[:, None].float() / 255
        return ((grey - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def track(
        self,
        features: Features,
        support: list[Memory],
        past: list[Memory],
        num_frames: int,
        size: tuple[int, int],
    ) -> tuple[Answer, Memory]:
        """Segment the next frame of a video, and memorise what was found on it.

        Args:
            features: of the next frame, B rows, each of another video.
            support: memories of the prompted frames that open the video, each with B rows.
            past: what earlier calls made of the frames between, in order, each with B rows.
            num_frames: of the whole video, which scales how it encodes time.
            size: (H, W) of the logits.

        Returns:
            The answer of B rows, and the frame's memory.
        """
        with self.autocast():
            conditioned = self._conditioned(features, support, past, num_frames)
            low, iou, object_score, memory = self.answer_and_memory(conditioned, features)
        return _answer(low, iou.amax(1), object_score, size), memory


def _answer(mask: Tensor, iou: Tensor, object_score: Tensor, size: tuple[int, int]) -> Answer:
    """Of quarter-resolution logits ``[B, 1, h, w]``, IoU ``[B]`` and object score ``[B, 1]``."""
    parts = resized(mask.float(), size), object_score[:, 0], iou
    return Answer(*(part.float().cpu().numpy() for part in parts))
