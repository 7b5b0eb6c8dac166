"""Stage 3, Prompt-Driven Segmentation: matched copies and their masks prompt the query slices."""

from dataclasses import dataclass

import numpy as np
import torch

from fsmis.segmenters.sam2 import Features, Memory, Sam2


@dataclass(frozen=True)
class Prompts:
    """Which copy, with which mask, prompts which query slice; rows are (query slice, organ) pairs.

    A memory is one (copy, organ) pair, so rows that share a copy and an organ share it.

    Attributes:
        memory_copy: int ``[M]``, copy of each memory.
        memory_mask: bool ``[M, H, W]``, its mask.
        row_query: int ``[R]``, query slice of each row.
        row_memory: int ``[R, k]``, the k memories that prompt it, nearest last.
    """

    memory_copy: np.ndarray
    memory_mask: np.ndarray
    row_query: np.ndarray
    row_memory: np.ndarray


def segment_prompted(
    segmenter: Sam2, queries: Features, copies: Features, prompts: Prompts
) -> np.ndarray:
    """Logits float32 ``[R, H, W]`` of the rows, foreground above 0.

    Args:
        segmenter: the video model; rows and memories pass it ``batch_size`` at a time.
        queries: features of the query slices.
        copies: features of the copies.
        prompts: what prompts what.
    """
    batch = segmenter.batch_size
    memory = Memory.cat(
        [
            segmenter.memorise(copies[copy], mask)
            for copy, mask in zip(
                _batches(prompts.memory_copy, batch),
                _batches(prompts.memory_mask, batch),
                strict=True,
            )
        ]
    )
    size = prompts.memory_mask.shape[-2:]
    logits = [
        segmenter.segment(queries[query], [memory[frame] for frame in frames.T], size)
        for query, frames in zip(
            _batches(prompts.row_query, batch), _batches(prompts.row_memory, batch), strict=True
        )
    ]
    return torch.cat(logits).cpu().numpy()


def _batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
