"""Stage 3, Prompt-Driven Segmentation: matched copies and their masks prompt the query slices."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fsmis.batches import batches
from fsmis.features.encoded_episode import EncodedEpisode
from fsmis.protocol import Episode
from fsmis.segmenters.answer import Answer
from fsmis.segmenters.features import Features, Memory
from fsmis.segmenters.sam2 import Sam2


@dataclass(frozen=True)
class Prompts:
    """Which copy, with which mask, prompts which query slice; rows are (query slice, organ) pairs.

    A memory is one (copy, organ) pair, so rows that share a copy and an organ share it. The first L
    of the M memories are of labels, the others of predictions on query slices, which may be of
    another size.

    Attributes:
        memory_copy: int ``[M]``, copy of each memory.
        memory_mask: bool ``[L, H, W]``, masks of the labels.
        row_query: int ``[R]``, query slice of each row.
        row_memory: int ``[R, k]``, the memories that prompt it, nearest last; -1 stands for none,
            so that rows may have fewer than k.
        predicted_mask: bool ``[M - L, H', W']``, masks of the predictions; None: no such.
        size: (H', W') of the query slices and so of the logits; None: that of the labels.
    """

    memory_copy: np.ndarray
    memory_mask: np.ndarray
    row_query: np.ndarray
    row_memory: np.ndarray
    predicted_mask: np.ndarray | None = None
    size: tuple[int, int] | None = None


Segment = Callable[[Prompts], Answer]  # images fixed: prompts to the answer of their rows


def segment_prompted(
    segmenter: Sam2, queries: Features, copies: Features, prompts: Prompts
) -> Answer:
    """The answer of the rows.

    Args:
        segmenter: the video model; rows and memories pass it ``batch_size`` at a time.
        queries: features of the query slices.
        copies: features of the copies.
        prompts: what prompts what.
    """
    batch = segmenter.batch_size
    of_labels, of_predictions = np.split(prompts.memory_copy, [len(prompts.memory_mask)])
    kinds = [(of_labels, prompts.memory_mask, True)]
    if prompts.predicted_mask is not None:
        kinds.append((of_predictions, prompts.predicted_mask, False))
    memory = Memory.cat(
        [
            segmenter.memorise(copies[images[some]], masks[some], labelled)
            for images, masks, labelled in kinds
            for some in batches(np.arange(len(images)), batch)
        ]
    )
    size = prompts.size or prompts.memory_mask.shape[-2:]
    counts = (prompts.row_memory >= 0).sum(axis=1)
    rows_of_step = [
        rows
        for count in np.unique(counts)  # the rows of a step have equally many memories
        for rows in batches(np.flatnonzero(counts == count), batch)
    ]
    answers = []
    for rows in rows_of_step:
        frames = prompts.row_memory[rows]
        frames = frames[frames >= 0].reshape(len(rows), -1)
        memories = [memory[frame] for frame in frames.T]
        answers.append(segmenter.segment(queries[prompts.row_query[rows]], memories, size))
    in_order = np.argsort(np.concatenate(rows_of_step))
    return Answer.cat(answers)[in_order]


def single_support(segmenter: Sam2, episode: Episode) -> dict[str, Answer]:
    """The answer on the query slices of every task, each prompted by its part's support slice."""
    encoded = EncodedEpisode.encode(segmenter, episode)
    images, prompts = support_prompts(episode, encoded)
    return by_organ(episode, segment_prompted(segmenter, images, images, prompts))


def support_prompts(episode: Episode, encoded: EncodedEpisode) -> tuple[Features, Prompts]:
    """One row for each query slice of each organ, in the order of the episode, prompted by its
    part's support slice; and the images that the prompts number, supports first."""
    tasks = list(episode.organs.values())
    parts = [len(task.support_slices) for task in tasks]
    first = np.cumsum([0, *parts[:-1]])  # memory of each organ's first part
    prompts = Prompts(
        memory_copy=np.concatenate([encoded.support_rows(task) for task in tasks]),
        memory_mask=np.concatenate([task.support_masks for task in tasks]),
        row_query=len(encoded.supports)
        + np.concatenate([encoded.query_rows(task) for task in tasks]),
        row_memory=np.concatenate(
            [start + task.part for start, task in zip(first, tasks, strict=True)]
        )[:, None],
        size=episode.query.image.shape[1:],
    )
    return Features.cat([encoded.supports, encoded.queries]), prompts


def by_organ(episode: Episode, answer: Answer) -> dict[str, Answer]:
    """The answer of each organ, from rows in the order of the episode's tasks."""
    ends = np.cumsum([len(task.query_slices) for task in episode.organs.values()])
    rows = np.split(np.arange(len(answer)), ends[:-1])
    return {organ: answer[some] for organ, some in zip(episode.organs, rows, strict=True)}
