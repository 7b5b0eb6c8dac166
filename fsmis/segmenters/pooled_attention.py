"""Attention to fewer memory tokens. Imports ``sam2``, so it is named in an architecture alone."""

import math

import torch
import torch.nn.functional as F
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor

POOL = 2  # cells a side that become one token


class PooledAttention(RoPEAttention):
    """Cross-attention to memories, each 2 x 2 cells of which are averaged to one token.

    The idea of EfficientTAM (Xiong et al., arXiv 2411.18933), without training for it: a token lies
    at the centre of its cells, counts four times in the softmax, and object pointers stay whole.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        """Attention of ``q [B, h h, C]`` to frames of h h cells and then
        ``num_k_exclude_rope`` pointers, ``k`` and ``v [B, M, C']``; h is even."""
        side, spatial = math.isqrt(q.shape[1]), k.shape[1] - num_k_exclude_rope
        k, v = (torch.cat([pooled(x[:, :spatial], side), x[:, spatial:]], 1) for x in (k, v))
        spatial //= POOL**2
        heads = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        queries, keys, values = heads
        turns = self.compute_cis(end_x=side, end_y=side).to(q.device)
        # the mean of unit vectors around a centre points to it
        centres = pooled(turns[None], side)[0].sgn()
        frames = spatial // len(centres)
        keys = torch.cat(
            [rotated(keys[:, :, :spatial], centres.repeat(frames, 1)), keys[:, :, spatial:]], 2
        )
        weight = torch.zeros(1, keys.shape[2], dtype=queries.dtype, device=q.device)
        weight[:, :spatial] = math.log(POOL**2)
        out = F.scaled_dot_product_attention(rotated(queries, turns), keys, values, weight)
        return self.out_proj(out.transpose(1, 2).flatten(2))


def pooled(tokens: Tensor, side: int) -> Tensor:
    """Means of 2 x 2 cells: ``[B, frames side side, C]`` to a quarter of the tokens."""
    cells = tokens.unflatten(1, (-1, side // POOL, POOL, side // POOL, POOL))
    return cells.mean((3, 5)).flatten(1, 3)


def rotated(heads: Tensor, turns: Tensor) -> Tensor:
    """Rotary position encoding: ``[B, heads, N, C]`` times complex ``[N, C / 2]``."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(heads)
