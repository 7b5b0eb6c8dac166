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
from fsmis.features.feature_cache import FeatureCache, fingerprint
from fsmis.segmenters.architecture import read_architecture
from fsmis.segmenters.checkpoints import load_weights
from fsmis.segmenters.device import resolve_device
from fsmis.segmenters.features import Features, Memory, sequence
from fsmis.segmenters.frames import to_frames
from fsmis.segmenters.logits import gated, resized


class Sam2:
    """SAM2 or SAM2.1 as a segmenter of three calls.

    Args:
        architecture: see :func:`fsmis.segmenters.architecture.read_architecture`.
        checkpoint: Hugging Face hub id (``facebook/sam2.1-hiera-tiny``), a local ``.pt`` or
            ``.safetensors`` file, ``sam2_mini.safetensors`` (shipped beside this file), or
            ``random`` (seeded weights, for tests and benchmarks).
        sha256: expected SHA-256 of the checkpoint file; null: not checked.
        image_size: side in pixels the network sees, a multiple of 32; published weights want 1024.
        mean, std: per-channel normalisation of [0, 1] pixels.
        overrides: changes to the architecture, dotted keys below ``model``.
        batch_size: rows, (query slice, organ) pairs, of one query step.
        encode_batch_size: images of one encoder pass; a CPU takes one at a time.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        seed: seed of the random weights.
        cache: keeps the features of images; the weights must not change then.

    Raises:
        UserError: bad size or batch, checkpoint missing, damaged or of another architecture.

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
        self.encode_batch_size = encode_batch_size
        self.cache = cache
        self.images_encoded = 0

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> Features:
        """Image features of float32 ``[B, H, W]`` in [0, 1]; each image passes the encoder once."""
        if self.cache is None:
            levels = self._encode(images)
        else:
            levels = self.cache.reuse(self._fingerprint, images, self._encode)
        levels = [level.to(self.device, memory_format=torch.channels_last) for level in levels]
        position = self.model.image_encoder.neck.position_encoding(levels[-1][:1])
        return Features(levels, position.to(levels[-1].dtype))

    def _encode(self, images: np.ndarray) -> list[Tensor]:
        # On a CPU rounding depends on which images share a pass, and a cache must change nothing.
        batch = 1 if self.device.type == "cpu" else self.encode_batch_size
        with self.autocast():
            parts = [
                self.features(self.pixels(images[start : start + batch]))
                for start in range(0, len(images), batch)
            ]
        self.images_encoded += len(images)
        return Features.cat(parts).levels

    @cached_property
    def _fingerprint(self) -> str:
        pixels = [self.mean.tolist(), self.std.tolist()]
        settings = {"sam2": OmegaConf.to_container(self.architecture), "pixels": pixels}
        return fingerprint(self.model, settings, self.device)

    @torch.inference_mode()
    def memorise(self, features: Features, masks: np.ndarray | Tensor) -> Memory:
        """Memories of bool masks ``[B, H, W]`` on images whose features are given (B rows)."""
        mask = torch.as_tensor(masks, device=self.device)[:, None].float()
        size = (self.image_size, self.image_size)
        if mask.shape[-2:] != size:
            mask = F.interpolate(mask, size, mode="bilinear", antialias=True)
        # A mask of a pixel or two would vanish at 0.5, and an empty prompt asks for nothing.
        threshold = mask.amax((1, 2, 3), keepdim=True).clamp(min=1e-6, max=0.5)
        with self.autocast():
            return self.memory(features, (mask >= threshold).float())

    @torch.inference_mode()
    def segment(self, features: Features, memories: list[Memory], size: tuple[int, int]) -> Tensor:
        """Mask logits float32 ``[B, H, W]`` of the query, foreground above 0.

        Args:
            features: of the query images, B rows.
            memories: one or more support frames, each with B rows.
            size: (H, W) of the logits.
        """
        with self.autocast():
            mask, _, object_score = self.decode(features, memories)
        return resized(gated(mask, object_score), size)

    def autocast(self) -> torch.autocast:
        """The precision of inference: bfloat16 where the device is CUDA."""
        kind = self.device.type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda")

    def pixels(self, images: np.ndarray) -> Tensor:
        """Network input ``[B, 3, S, S]`` of images in [0, 1]."""
        frames = torch.from_numpy(to_frames(images, self.image_size)).to(self.device)
        grey = frames[:, None].float() / 255
        return ((grey - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def features(self, pixels: Tensor) -> Features:
        """Features of normalised pixels ``[B, 3, S, S]`` (differentiable)."""
        out = self.model.forward_image(pixels)
        return Features(list(out["backbone_fpn"]), out["vision_pos_enc"][-1][:1])

    def memory(self, features: Features, masks: Tensor) -> Memory:
        """Memory of binary masks float ``[B, 1, S, S]`` (differentiable)."""
        *high, top = features.levels
        low, _, _, _, _, pointer, score = self.model._use_mask_as_output(top, high, masks)
        # The predictor keeps masks at a quarter of the resolution and memorises them upsampled.
        mask = F.interpolate(low, masks.shape[-2:], mode="bilinear", align_corners=False)
        return self._memory(top, mask, pointer, score, given=True)

    def _memory(
        self, top: Tensor, mask: Tensor, pointer: Tensor, object_score: Tensor, given: bool
    ) -> Memory:
        encoded, position = self.model._encode_new_memory(
            current_vision_feats=[sequence(top)],
            feat_sizes=[top.shape[-2:]],
            pred_masks_high_res=mask,
            object_score_logits=object_score,
            is_mask_from_pts=given,
        )
        return Memory(encoded.to(torch.bfloat16), position[-1][:1], pointer)

    def decode(self, features: Features, memories: list[Memory]) -> tuple[Tensor, Tensor, Tensor]:
        """Ungated quarter-resolution logits ``[B, 1, 4h, 4h]``, predicted IoU ``[B, 1]`` and object
        score ``[B, 1]`` of the frame that follows the memories (differentiable)."""
        *high, top = features.levels
        conditioned = self._conditioned(features, memories, [], len(memories) + 1)
        no_point = torch.zeros(len(features), 1, 2, device=top.device)
        padding = -torch.ones(len(features), 1, dtype=torch.int32, device=top.device)
        return self._decode(conditioned, high, no_point, padding)

    @torch.inference_mode()
    def track(
        self,
        features: Features,
        support: list[Memory],
        past: list[Memory],
        num_frames: int,
        size: tuple[int, int],
    ) -> tuple[Tensor, Memory]:
        """Segment the next frame of a video, and memorise what was found on it.

        Args:
            features: of the next frame, B rows, each of another video.
            support: memories of the prompted frames that open the video, each with B rows.
            past: what earlier calls made of the frames between, in order, each with B rows.
            num_frames: of the whole video, which scales how it encodes time.
            size: (H, W) of the logits.

        Returns:
            Mask logits float32 ``[B, H, W]``, foreground above 0, and the frame's memory.
        """
        model = self.model
        *high, top = features.levels
        with self.autocast():
            conditioned = self._conditioned(features, support, past, num_frames)
            _, _, _, low, high_mask, pointer, object_score = model._forward_sam_heads(
                conditioned,
                high_res_features=high,
                multimask_output=model._use_multimask(False, None),
            )
            memory = self._memory(top, high_mask, pointer, object_score, given=False)
        return resized(low, size), memory

    def _conditioned(
        self, features: Features, support: list[Memory], past: list[Memory], num_frames: int
    ) -> Tensor:
        """Last level of the frame that follows the memories, having attended to them."""
        top = features.levels[-1]

        def encodings(position: Tensor) -> Tensor:
            return position.expand(len(features), -1, -1, -1)

        frames = [
            {
                "maskmem_features": memory.features,
                "maskmem_pos_enc": [encodings(memory.position)],
                "obj_ptr": memory.pointer,
            }
            for memory in (*support, *past)
        ]
        numbered = list(enumerate(frames))
        prompted, tracked = dict(numbered[: len(support)]), dict(numbered[len(support) :])
        return self.model._prepare_memory_conditioned_features(
            frame_idx=len(frames),
            is_init_cond_frame=False,
            current_vision_feats=[sequence(top)],
            current_vision_pos_embeds=[sequence(encodings(features.position))],
            feat_sizes=[top.shape[-2:]],
            output_dict={"cond_frame_outputs": prompted, "non_cond_frame_outputs": tracked},
            num_frames=num_frames,
        )

    def decode_points(
        self,
        features: Features,
        coordinates: Tensor,
        labels: Tensor,
        previous: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same for images prompted by points or boxes and no memory (differentiable).

        Args:
            features: of B images.
            coordinates: float ``[B, P, 2]``, (x, y) in pixels of the network's image.
            labels: int32 ``[B, P]``, SAM's own: 1 foreground, 0 background, 2 and 3 the upper left
                and lower right corner of a box, -1 no point.
            previous: logits ``[B, 1, 4h, 4h]`` of an earlier answer to refine.
        """
        *high, top = features.levels
        no_memory = self.model.no_mem_embed.view(1, -1, 1, 1)
        return self._decode(top + no_memory, high, coordinates, labels, previous)

    def _decode(
        self,
        conditioned: Tensor,
        high: list[Tensor],
        coordinates: Tensor,
        labels: Tensor,
        previous: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        model = self.model
        points = coordinates, labels
        sparse, dense = model.sam_prompt_encoder(points=points, boxes=None, masks=previous)
        masks, iou, _, object_score = model.sam_mask_decoder(
            image_embeddings=conditioned,
            image_pe=model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=model._use_multimask(False, None),
            repeat_image=False,
            high_res_features=high,
        )
        best = iou.argmax(1, keepdim=True)
        masks = masks.take_along_dim(best[..., None, None], 1)
        return masks, iou.take_along_dim(best, 1), object_score
