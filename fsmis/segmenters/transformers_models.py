"""Video models of Hugging Face's ``transformers`` behind the calls of a segmenter.

``Sam2VideoModel`` (SAM 2, arXiv 2408.00714), ``EdgeTamVideoModel`` (EdgeTAM, arXiv 2501.07256) and
the tracker of SAM 3 (``Sam3TrackerVideoModel``, arXiv 2511.16719), each the same function as its
own inference session on a video [support, query] with a mask prompt on the support, but batched
over rows and with each image encoded once. Images are resized as for ``Sam2``: 8 bits, then
bicubic; the processors of transformers interpolate bilinearly.

On the same weights ``Sam2VideoModel`` and the ``sam2`` package agree in the features of images and
in what they decode from a given memory. They differ, by design of transformers, in the memory of a
mask prompt: it encodes the binary mask at full size, where Meta's predictor encodes the logits of a
mask at a quarter of the size, upsampled; and its object pointer comes from the best of the three
masks of the decoder, where Meta's comes from the decoder's single mask, whose token is the only
one that is trained in ``sam2_mini``.

Private methods of these models are called here alone; ``pyproject.toml`` bounds the package.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from fsmis.errors import UserError
from fsmis.segmenters.cache import FeatureCache
from fsmis.segmenters.features import Features, Memory, sequence
from fsmis.segmenters.network import Decoded, NetworkSegmenter, check_sizes, gated
from fsmis.segmenters.transformers_loading import MULTIPLES, build


class TransformersModel(NetworkSegmenter):
    """One of these models as a segmenter.

    Args:
        model: ``Sam2Video``, ``EdgeTamVideo`` or ``Sam3TrackerVideo``.
        checkpoint: Hugging Face hub id, a folder with ``config.json`` and ``model.safetensors``, or
            ``random`` (seeded weights, for tests).
        architecture: of random weights: what the config class of transformers takes. Those of a
            checkpoint are in its ``config.json``.
        image_size, mean, std, batch_size, encode_batch_size, device, precision, cache: see
            :class:`NetworkSegmenter`.
        seed: of random weights.

    Raises:
        UserError: transformers is not installed, the model is not one of the three, a size is bad,
            or the checkpoint is missing or of another model.
    """

    def __init__(
        self,
        model: str,
        checkpoint: str,
        image_size: int,
        mean: list[float],
        std: list[float],
        architecture: dict[str, Any] | None = None,
        batch_size: int = 16,
        encode_batch_size: int = 4,
        device: str = "auto",
        seed: int = 0,
        cache: FeatureCache | None = None,
        precision: str | None = None,
    ):
        if model not in MULTIPLES:
            raise UserError(f"segmenter.model={model}: choose one of {', '.join(MULTIPLES)}")
        check_sizes(image_size, MULTIPLES[model], batch_size, encode_batch_size)
        torch.manual_seed(seed)
        plain: Any = OmegaConf.to_container(OmegaConf.create(architecture or {}))
        network = build(model, checkpoint, image_size, plain)
        super().__init__(
            network,
            image_size,
            mean,
            std,
            batch_size,
            encode_batch_size,
            device,
            precision,
            cache,
        )
        # EdgeTAM alone compresses a memory into latents and tells its attention their number.
        self.has_latents = model == "EdgeTamVideo"

    def features(self, pixels: Tensor) -> Features:
        """See ``NetworkSegmenter.features``."""
        out = self.model.get_image_features(pixels, return_dict=True)
        sizes = self.model.backbone_feature_sizes
        levels = [
            level.permute(1, 2, 0).unflatten(2, tuple(size))
            for level, size in zip(out.fpn_hidden_states, sizes, strict=True)
        ]
        return Features(levels, self.image_position(levels[-1][:1]))

    def image_position(self, top: Tensor) -> Tensor:
        """See ``NetworkSegmenter.image_position``."""
        neck = self.model.vision_encoder.neck
        return neck.position_encoding(top[:1].shape, top.device, top.dtype)

    def memory(self, features: Features, masks: Tensor) -> Memory:
        """See ``NetworkSegmenter.memory``; the model's ``_use_mask_as_output``, batched."""
        *high, top = features.levels
        prompt = self.model.mask_downsample(masks).float()
        size = self.model.prompt_encoder.mask_input_size
        if prompt.shape[-2:] != size:
            prompt = F.interpolate(prompt, size, mode="bilinear", antialias=True)
        _, pointer = self._heads(top, high, *no_point(top), prompt, multimask=True)
        present = masks.flatten(1).any(1, keepdim=True).to(pointer.dtype)
        pointer = present * pointer + (1 - present) * self.model.no_object_pointer
        return self._memory(top, masks * 20 - 10, pointer, present * 20 - 10, given=True)

    def _memory(
        self, top: Tensor, mask: Tensor, pointer: Tensor, object_score: Tensor, given: bool
    ) -> Memory:
        # EdgeTAM reshapes its latents in a way that only one row survives.
        size = 1 if self.has_latents else len(top)
        parts = [
            self.model._encode_new_memory(
                current_vision_feats=sequence(top[rows]),
                pred_masks_high_res=mask[rows],
                object_score_logits=object_score[rows, :, None],
                is_mask_from_pts=given,
            )
            for rows in torch.arange(len(top), device=top.device).split(size)
        ]
        encoded, position = torch.cat([part[0] for part in parts]), parts[0][1]
        if not self.has_latents:  # [N, B, M]
            encoded, position = encoded.transpose(0, 1), position.transpose(0, 1)
        return Memory(encoded, pointer, position[:1])

    def memory_position(self, encoded: Tensor) -> Tensor:
        """See ``NetworkSegmenter.memory_position``: of ``[B, N, M]``, N cells or latents."""
        top = torch.zeros(
            1,
            self.model.hidden_dim,
            *self.model.backbone_feature_sizes[-1],
            device=encoded.device,
        )
        mask = top.new_zeros(1, 1, self.image_size, self.image_size)
        return self._memory(top, mask, top.new_empty(1, 0), top.new_ones(1, 1), given=True).position

    def decode(self, features: Features, memories: list[Memory]) -> Decoded:
        """See ``NetworkSegmenter.decode``."""
        *high, top = features.levels
        conditioned = self._conditioned(features, memories, [], len(memories) + 1)
        decoded, _ = self._heads(conditioned, high, *no_point(top))
        return decoded

    def decode_points(
        self,
        features: Features,
        coordinates: Tensor,
        labels: Tensor,
        previous: Tensor | None = None,
    ) -> Decoded:
        """See ``NetworkSegmenter.decode_points``."""
        *high, top = features.levels
        alone = top + self.model.no_memory_embedding.view(1, -1, 1, 1)
        return self._heads(alone, high, coordinates[:, None], labels[:, None], previous)[0]

    def follow(
        self, features: Features, support: list[Memory], past: list[Memory], num_frames: int
    ) -> tuple[Decoded, Memory]:
        """See ``NetworkSegmenter.follow``."""
        *high, top = features.levels
        conditioned = self._conditioned(features, support, past, num_frames)
        (mask, iou, object_score), pointer = self._heads(conditioned, high, *no_point(top))
        mask = gated(mask, object_score)
        side = (self.image_size, self.image_size)
        full = F.interpolate(mask, side, mode="bilinear", align_corners=False)
        memory = self._memory(top, full, pointer, object_score, given=False)
        return (mask, iou, object_score), memory

    def _conditioned(
        self, features: Features, support: list[Memory], past: list[Memory], num_frames: int
    ) -> Tensor:
        """Last level of the frame that follows the memories, having attended to them; the model's
        ``_prepare_memory_conditioned_features``, batched."""
        model, top = self.model, features.levels[-1]
        rows, channels = top.shape[:2]
        frames = [
            {"memory": memory, "object_pointer": memory.pointer} for memory in (*support, *past)
        ]
        numbered = list(enumerate(frames))
        # what the model reads of a session to choose among its frames
        session = SimpleNamespace(
            output_dict_per_obj=[
                {
                    "cond_frame_outputs": dict(numbered[: len(support)]),
                    "non_cond_frame_outputs": dict(numbered[len(support) :]),
                }
            ]
        )
        now = len(frames)
        seen = [
            (age, frame["memory"])
            for age, frame in model._gather_memory_frame_outputs(session, 0, now)
            if frame is not None
        ]
        pointers, pointer_positions = model._process_object_pointers(
            *model._get_object_pointers(session, 0, now, num_frames, top.device),
            rows,
            channels,
            top.device,
        )
        maps = [memory.features.transpose(0, 1) for _, memory in seen]
        ages = model.memory_temporal_positional_encoding
        positions = [
            (memory.position.transpose(0, 1) + ages[age - 1]).expand(-1, rows, -1)
            for age, memory in seen
        ]
        known = {"num_spatial_memory_tokens": len(maps)} if self.has_latents else {}
        attended = model.memory_attention(
            sequence(top),
            torch.cat([*maps, pointers]).to(top.dtype),
            sequence(features.position.expand(rows, -1, -1, -1)),
            torch.cat([*positions, pointer_positions]),
            num_object_pointer_tokens=len(pointers),
            **known,
        )
        return attended[0].transpose(1, 2).unflatten(2, top.shape[2:])

    def _heads(
        self,
        top: Tensor,
        high: list[Tensor],
        coordinates: Tensor,
        labels: Tensor,
        previous: Tensor | None = None,
        multimask: bool | None = None,
    ) -> tuple[Decoded, Tensor]:
        """The best mask that the decoder finds and the object pointer ``[B, C]``; the model's
        ``_single_frame_forward``, batched."""
        model = self.model
        if multimask is None:
            multimask = model._use_multimask(False, None)
        sparse, dense = model.prompt_encoder(coordinates, labels, None, previous)
        logits, iou, tokens, object_score = model.mask_decoder(
            image_embeddings=top,
            image_positional_embeddings=model.get_image_wide_positional_embeddings().expand(
                len(top), -1, -1, -1
            ),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            high_resolution_features=high,
        )
        logits, iou, tokens, object_score = (
            part[:, 0] for part in (logits, iou, tokens, object_score)
        )
        best = iou.argmax(1, keepdim=True)
        pointer = model.object_pointer_proj(tokens.take_along_dim(best[..., None], 1)[:, 0])
        present = (object_score > 0).to(pointer.dtype)
        pointer = present * pointer + (1 - present) * model.no_object_pointer
        mask = logits.take_along_dim(best[..., None, None], 1)
        return (mask, iou.take_along_dim(best, 1), object_score), pointer

    def settings(self) -> dict[str, Any]:
        """See ``NetworkSegmenter.settings``."""
        return {"transformers": self.model.config.to_dict()}


def no_point(top: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates and labels that prompt nothing, one for each row of ``top``."""
    coordinates = torch.zeros(len(top), 1, 1, 2, device=top.device)
    return coordinates, -torch.ones(len(top), 1, 1, dtype=torch.int32, device=top.device)
