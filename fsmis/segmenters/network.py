"""A network of torch as a segmenter: pixels, batches, devices and the cache around its steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fsmis.errors import UserError
from fsmis.segmenters import NO_OBJECT, Answer
from fsmis.segmenters.cache import FeatureCache, fingerprint, key
from fsmis.segmenters.features import Features, Memory, batches, firm, resized, to_frames
from fsmis.source import source_hash

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PORTION = 256  # queries whose weights for all keys stay in a CPU's cache

Decoded = tuple[Tensor, Tensor, Tensor]  # logits [B, 1, 4h, 4h], IoU [B, 1], object score [B, 1]


class NetworkSegmenter(ABC):
    """A :class:`~fsmis.segmenters.Tracker` made of a network's steps on tensors.

    Args:
        model: the network, with its weights.
        image_size: side S in pixels that it sees.
        mean, std: per-channel normalisation of [0, 1] pixels.
        batch_size: rows, (query slice, organ) pairs, of one query step.
        encode_batch_size: images of one encoder pass; a CPU takes one at a time.
        device: see :func:`resolve_device`.
        precision: ``float32`` or ``bfloat16``; None: bfloat16 on CUDA, float32 elsewhere.
        cache: keeps the features of images and the memories of labels; the weights must not change
            then.

    Attributes:
        images_encoded: images that passed the encoder, counted over all calls.
    """

    def __init__(
        self,
        model: Any,
        image_size: int,
        mean: list[float],
        std: list[float],
        batch_size: int,
        encode_batch_size: int,
        device: str,
        precision: str | None,
        cache: FeatureCache | None,
    ):
        if precision not in (None, *PRECISIONS):
            raise UserError(f"segmenter.precision={precision}: choose null, float32 or bfloat16")
        self.device = resolve_device(device)
        own = "bfloat16" if self.device.type == "cuda" else "float32"
        self.precision = PRECISIONS[precision or own]
        self.model = model.eval().to(self.device).requires_grad_(False)
        self.image_size = image_size
        self.mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        self.batch_size = batch_size
        # On a CPU rounding depends on which images share a pass, and a cache must change nothing.
        self.encode_batch_size = 1 if self.device.type == "cpu" else encode_batch_size
        self.cache = cache
        self.images_encoded = 0
        self.compiled = False

    @abstractmethod
    def features(self, pixels: Tensor) -> Features:
        """Features of normalised pixels ``[B, 3, S, S]``."""

    @abstractmethod
    def memory(self, features: Features, masks: Tensor) -> Memory:
        """Memory of binary masks float ``[B, 1, S, S]``."""

    @abstractmethod
    def decode(self, features: Features, memories: list[Memory]) -> Decoded:
        """What the frame that follows the memories shows, its logits not gated by the score."""

    @abstractmethod
    def decode_points(
        self,
        features: Features,
        coordinates: Tensor,
        labels: Tensor,
        previous: Tensor | None = None,
    ) -> Decoded:
        """The same for images prompted by points or boxes and no memory.

        Args:
            features: of B images.
            coordinates: float ``[B, P, 2]``, (x, y) in pixels of the network's image.
            labels: int32 ``[B, P]``, SAM's own, see ``fsmis.segmenters.steps``.
            previous: logits ``[B, 1, 4h, 4h]`` of an earlier answer to refine.
        """

    @abstractmethod
    def follow(
        self, features: Features, support: list[Memory], past: list[Memory], num_frames: int
    ) -> tuple[Decoded, Memory]:
        """The next frame of a video, see :meth:`track`: what it shows, and its memory."""

    @abstractmethod
    def image_position(self, top: Tensor) -> Tensor:
        """Position encoding ``[1, C, h, w]`` of coarsest features ``[B, C, h, w]``."""

    @abstractmethod
    def memory_position(self, encoded: Tensor) -> Tensor:
        """Position encoding of ``Memory.features``, with one row."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What determines the features besides weights, pixels and code; plain data."""

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> Features:
        """See ``Segmenter.encode``; each image passes the encoder once."""
        if self.cache is None:
            keys, levels = None, self._encode(images)
        else:
            keys = np.array([key(self._fingerprint, image) for image in images])
            levels = self.cache.reuse_rows(keys, lambda rows: self._encode(images[rows]))
        levels = [level.to(self.device, memory_format=torch.channels_last) for level in levels]
        position = self.image_position(levels[-1][:1])
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
        pixels = [self.image_size, self.mean.tolist(), self.std.tolist()]
        code = source_hash(type(self))
        settings = self.settings() | {"pixels": pixels, "compiled": self.compiled, "code": code}
        settings["precision"] = str(self.precision)
        return fingerprint(self.model, settings, self.device)

    @torch.inference_mode()
    def memorise(self, features: Features, masks: np.ndarray, labelled: bool = True) -> Memory:
        """See ``Segmenter.memorise``; the cache keeps the memories of labels."""
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
        position = self.memory_position(encoded[:1])
        return Memory(encoded, pointer, position.to(self.precision))

    def _memorise(self, features: Features, masks: np.ndarray) -> Memory:
        mask = torch.as_tensor(masks, device=self.device)[:, None].float()
        size = (self.image_size, self.image_size)
        if mask.shape[-2:] != size:
            mask = F.interpolate(mask, size, mode="bilinear", antialias=True)
        with self.autocast():
            return self.memory(features, firm(mask))

    @torch.inference_mode()
    def segment(self, features: Features, memories: list[Memory], size: tuple[int, int]) -> Answer:
        """See ``Segmenter.segment``."""
        with self.autocast():
            decoded = self.decode(features, memories)
        return _answer(decoded, size)

    @torch.inference_mode()
    def track(
        self,
        features: Features,
        support: list[Memory],
        past: list[Memory],
        num_frames: int,
        size: tuple[int, int],
    ) -> tuple[Answer, Memory]:
        """See ``Tracker.track``."""
        with self.autocast():
            decoded, memory = self.follow(features, support, past, num_frames)
        return _answer(decoded, size), memory

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Inference in its precision."""
        half, kind = self.precision is torch.bfloat16, self.device.type
        portions = AttentionInPortions() if half and kind == "cpu" else nullcontext()
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=half), portions:
            yield

    def pixels(self, images: np.ndarray) -> Tensor:
        """Network input ``[B, 3, S, S]`` of images in [0, 1]."""
        frames = torch.from_numpy(to_frames(images, self.image_size)).to(self.device)
        grey = frames[:, None].float() / 255
        return ((grey - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class AttentionInPortions(TorchFunctionMode):
    """Inside the block, attention takes some queries at a time, as plain products: in bfloat16 3.7
    times as fast as torch's fused attention, which on a CPU computes in float32."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            function = attention_in_portions
        return function(*args, **(kwargs or {}))


def attention_in_portions(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **more: Any,
) -> Tensor:
    """``F.scaled_dot_product_attention``, in portions where it treats all queries alike."""
    added = attn_mask is None or (attn_mask.shape[-2] == 1 and attn_mask.is_floating_point())
    if is_causal or any(more.values()) or not added:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more
        )
    scaled = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    parts = []
    for some in scaled.split(PORTION, dim=-2):
        weights = some @ key.transpose(-1, -2)
        weights = weights if attn_mask is None else weights + attn_mask
        parts.append(F.dropout(weights.softmax(-1), dropout_p) @ value)
    return torch.cat(parts, dim=-2)


def resolve_device(name: str) -> torch.device:
    """The device ``auto`` (CUDA if available, else CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises UserError where this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} is not available here; use device=cpu or auto") from error
    return device


def check_sizes(image_size: int, multiple: int, batch_size: int, encode_batch_size: int) -> None:
    """Refuse sizes that a network cannot take, before it is built.

    Raises:
        UserError: ``image_size`` is no multiple of ``multiple``, or a batch is below 1.
    """
    if image_size % multiple or image_size <= 0:
        raise UserError(f"segmenter.image_size={image_size} is not a multiple of {multiple}")
    if batch_size < 1 or encode_batch_size < 1:
        raise UserError(
            f"segmenter.batch_size={batch_size}, encode_batch_size={encode_batch_size}: choose "
            "1 or more"
        )


def gated(mask: Tensor, object_score: Tensor) -> Tensor:
    """Mask logits ``[B, 1, h, w]``, nowhere an object where its score ``[B, 1]`` is 0 or less."""
    return torch.where(object_score[..., None, None] > 0, mask.float(), NO_OBJECT)


def _answer(decoded: Decoded, size: tuple[int, int]) -> Answer:
    mask, iou, object_score = decoded
    parts = resized(mask.float(), size), object_score[:, 0], iou[:, 0]
    return Answer(*(part.float().cpu().numpy() for part in parts))
