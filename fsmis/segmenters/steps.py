"""SAM2's steps on tensors, differentiable: what inference and training share.

Private methods of the ``sam2`` package are called here alone; ``pyproject.toml`` bounds it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmis.segmenters.features import Features, Memory, sequence


class Steps:
    """An image encoded, a mask on it memorised, another image segmented given memories or points.

    Attributes:
        model: SAM2's network (``SAM2Base``).
    """

    model: Any

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
        return Memory(encoded.to(torch.bfloat16), pointer, position[-1][:1])

    def decode(self, features: Features, memories: list[Memory]) -> tuple[Tensor, Tensor, Tensor]:
        """Ungated quarter-resolution logits ``[B, 1, 4h, 4h]``, predicted IoU ``[B, 1]`` and object
        score ``[B, 1]`` of the frame that follows the memories (differentiable)."""
        *high, top = features.levels
        conditioned = self._conditioned(features, memories, [], len(memories) + 1)
        no_point = torch.zeros(len(features), 1, 2, device=top.device)
        padding = -torch.ones(len(features), 1, dtype=torch.int32, device=top.device)
        return self._decode(conditioned, high, no_point, padding)

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
        first_attention = self.model.memory_attention.layers[0].self_attn
        with once_per_image(first_attention, features.image):  # no memory was read before it
            return self.model._prepare_memory_conditioned_features(
                frame_idx=len(frames),
                is_init_cond_frame=False,
                current_vision_feats=[sequence(top)],
                current_vision_pos_embeds=[sequence(encodings(features.position))],
                feat_sizes=[top.shape[-2:]],
                output_dict={"cond_frame_outputs": prompted, "non_cond_frame_outputs": tracked},
                num_frames=num_frames,
            )

    def answer_and_memory(
        self, conditioned: Tensor, features: Features
    ) -> tuple[Tensor, Tensor, Tensor, Memory]:
        """Gated logits ``[B, 1, 4h, 4h]``, IoU ``[B, M]``, object score ``[B, 1]`` and the
        memory of a frame that has attended to others."""
        *high, top = features.levels
        _, _, iou, low, mask, pointer, object_score = self.model._forward_sam_heads(
            conditioned,
            high_res_features=high,
            multimask_output=self.model._use_multimask(False, None),
        )
        return low, iou, object_score, self._memory(top, mask, pointer, object_score, given=False)

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


@contextmanager
def once_per_image(attention: nn.Module, image: Tensor | None) -> Iterator[None]:
    """Inside the block an attention computes the rows of an image once, and repeats the result.

    Args:
        attention: queries, keys and values of B rows, which rows of the same image have in common.
        image: int ``[B]``, equal for rows of the same image; None: every row is another.
    """
    if image is None:
        yield
        return
    distinct, of_row = image.unique(return_inverse=True)
    if len(distinct) == len(of_row):
        yield
        return
    rows = torch.arange(len(of_row), device=of_row.device)
    chosen = torch.empty_like(distinct).scatter_(0, of_row, rows)  # a row of each image

    def before(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Any:
        few = {name: tensor[chosen] for name, tensor in kwargs.items()}
        return tuple(tensor[chosen] for tensor in args), few

    def after(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output[of_row]

    handles = [
        attention.register_forward_pre_hook(before, with_kwargs=True),
        attention.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


BACKGROUND, FOREGROUND, UPPER_LEFT, LOWER_RIGHT, NO_POINT = 0, 1, 2, 3, -1
