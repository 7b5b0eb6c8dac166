"""Stage 3, Prompt-Driven Segmentation: matched copies and their masks prompt the query slices."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fsmis.batches import batches
from fsmis.segmenters.features import Features, Memory
from fsmis.segmenters.sam2 import Sam2


@dataclass(frozen=True)
class Prompts:
    """Which copy, with which mask, prompts which query slice; rows are (query slice, organ) pairs.

    A memory is one (copy, organ) pair, so rows that share a copy and an organ share it.

    Attributes:
        memory_copy: int ``[M]``, copy of each memory.
        memory_mask: bool ``[M, H, W]``, its mask.
        row_query: int ``[R]``, query slice of each row.
        row_memory: int ``[R, k]``, the memories that prompt it, nearest last; -1 stands for none,
            so that rows may have fewer than k.
        labelled: how many memories, from the first on, are of labels and not of predictions; None
            for all.
    """

    memory_copy: np.ndarray
    memory_mask: np.ndarray
    row_query: np.ndarray
    row_memory: np.ndarray
    labelled: int | None = None


Segment = Callable[[Prompts], np.ndarray]  # images fixed: prompts to logits [R, H, W]


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
    known = len(prompts.memory_copy) if prompts.labelled is None else prompts.labelled
    labels, predictions = np.split(np.arange(len(prompts.memory_copy)), [known])
    memory = Memory.cat(
        [
            segmenter.memorise(
                copies[prompts.memory_copy[some]], prompts.memory_mask[some], labelled
            )
            for memories, labelled in ((labels, True), (predictions, False))
            for some in batches(memories, batch)
        ]
    )
    size = prompts.memory_mask.shape[-2:]
    counts = (prompts.row_memory >= 0).sum(axis=1)
    rows_of_step = [
        rows
        for count in np.unique(counts)  # the rows of a step have equally many memories
        for rows in batches(np.flatnonzero(counts == count), batch)
    ]
    logits = []
    for rows in rows_of_step:
        frames = prompts.row_memory[rows]
        frames = frames[frames >= 0].reshape(len(rows), -1)
        memories = [memory[frame] for frame in frames.T]
        logits.append(segmenter.segment(queries[prompts.row_query[rows]], memories, size))
    in_order = np.argsort(np.concatenate(rows_of_step))
    return torch.cat(logits).cpu().numpy()[in_order]
