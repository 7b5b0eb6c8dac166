"""Stage 3, Prompt-Driven Segmentation: matched copies and their masks prompt the query slices.

Then, not in the paper, the volume as video: confident query slices prompt their neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fsmis.data.protocol import Episode, OrganTask
from fsmis.errors import UserError
from fsmis.pipeline import Match
from fsmis.segmenters import Answer, Segmenter
from fsmis.segmenters.features import Features, Memory, batches


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
    segmenter: Segmenter, queries: Features, copies: Features, prompts: Prompts
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
    by_slice = np.argsort(prompts.row_query, kind="stable")  # the organs of a slice share work
    rows_of_step = [
        rows
        for count in np.unique(counts)  # the rows of a step have equally many memories
        for rows in batches(by_slice[counts[by_slice] == count], batch)
    ]
    answers = []
    for rows in rows_of_step:
        frames = prompts.row_memory[rows]
        frames = frames[frames >= 0].reshape(len(rows), -1)
        memories = [memory[frame] for frame in frames.T]
        answers.append(segmenter.segment(queries[prompts.row_query[rows]], memories, size))
    in_order = np.argsort(np.concatenate(rows_of_step))
    return Answer.cat(answers)[in_order]


def single_support(
    segmenter: Segmenter, episode: Episode, encoded: EncodedEpisode
) -> dict[str, Answer]:
    """The answer on the query slices of every task, each prompted by its part's support slice."""
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


@dataclass(frozen=True, eq=False)
class EncodedEpisode:
    """Features of the distinct slices of an episode.

    Attributes:
        queries: of the query slices.
        supports: of the support slices.
        query_slices: positions of the former in the query scan, int, ascending.
        support_slices: positions of the latter in the support scan, int, ascending.
    """

    queries: Features
    supports: Features
    query_slices: np.ndarray
    support_slices: np.ndarray

    @classmethod
    def encode(cls, segmenter: Segmenter, episode: Episode) -> EncodedEpisode:
        """Pass the episode's distinct slices through the segmenter's encoder."""
        query, support = episode.query_slices, episode.support_slices
        return cls(
            segmenter.encode(episode.query.image[query]),
            segmenter.encode(episode.support.image[support]),
            query,
            support,
        )

    def query_rows(self, task: OrganTask) -> np.ndarray:
        """Rows of ``queries``, int ``[S]``, that hold a task's query slices."""
        return np.searchsorted(self.query_slices, task.query_slices)

    def support_rows(self, task: OrganTask) -> np.ndarray:
        """Rows of ``supports``, int ``[P]``, that hold a task's support slices."""
        return np.searchsorted(self.support_slices, task.support_slices)


def support_of_each_slice(episode: Episode) -> dict[str, list[Match]]:
    """For figures, by organ: the labelled slice of the part that each query slice belongs to."""
    return {
        organ: [
            Match(episode.support.image[task.support_slices[part]], task.support_masks[part])
            for part in task.part
        ]
        for organ, task in episode.organs.items()
    }


def mirror(images: np.ndarray) -> np.ndarray:
    """Images or masks ``[..., H, W]``, left and right exchanged."""
    return np.ascontiguousarray(images[..., ::-1])


def with_flip(upright: Segment, mirrored: Segment) -> Segment:
    """Average two views of the same images; where one sees no object, there is none.

    Args:
        upright: segments the images as they are.
        mirrored: segments the mirrored images; it gets the prompts with mirrored masks.
    """

    def segment(prompts: Prompts) -> Answer:
        one = upright(prompts)
        predicted = prompts.predicted_mask
        other = mirrored(
            replace(
                prompts,
                memory_mask=mirror(prompts.memory_mask),
                predicted_mask=None if predicted is None else mirror(predicted),
            )
        )
        return Answer(
            (one.logits + mirror(other.logits)) / 2,
            np.minimum(one.object_score, other.object_score),
            (one.iou + other.iou) / 2,
        )

    return segment


class VolumePass:
    """Second pass through the query volume; UserError for a setting out of its range.

    After the first pass, the mask of a confident query slice becomes a memory of the same organ for
    the slices around it. All slices take this step at once, so errors do not travel along the
    volume as they do when slice follows slice.

    Args:
        reach: slices up and down whose masks prompt a slice; 0 turns the pass off.
        confidence: least mean probability of a mask's pixels to become a memory.
    """

    def __init__(self, reach: int, confidence: float):
        if not isinstance(reach, int) or reach < 0:
            raise UserError(f"method.volume_pass.reach={reach}: must be a whole number, 0 or more")
        if not 0 <= confidence < 1:
            raise UserError(f"method.volume_pass.confidence={confidence}: must be in [0, 1)")
        self.reach = reach
        self.confidence = confidence

    def confident(self, answer: Answer) -> np.ndarray:
        """Which masks become memories: bool ``[R]``; empty ones never."""
        return answer.certainty > self.confidence

    def refine(
        self,
        answer: Answer,
        organs: Mapping[str, OrganTask],
        first: Prompts,
        segment: Segment,
    ) -> Answer:
        """The answer after the second pass; unchanged for rows without a confident neighbour.

        Args:
            answer: of the first pass, R rows; the query slices of ``organs``, in order.
            segment: answers prompts; to it, copies and query slices are one set of images.
        """
        if not self.reach:
            return answer
        slices = [(organ, int(z)) for organ, task in organs.items() for z in task.query_slices]
        rows, second = self.prompts(answer, slices, first)
        return answer.with_rows(rows, segment(second)) if len(rows) else answer

    def prompts(
        self, answer: Answer, slices: list[tuple[str, int]], first: Prompts
    ) -> tuple[np.ndarray, Prompts]:
        """Rows with a confident neighbour, int ``[Q]``, and their prompts in the second pass.

        These are the memories of the first pass, then the neighbours, the nearest last. ``slices``
        holds organ and slice position of each of the R rows of ``answer``.
        """
        known = np.flatnonzero(self.confident(answer))
        memory_of = {slices[row]: len(first.memory_copy) + new for new, row in enumerate(known)}
        steps = [step for away in range(self.reach, 0, -1) for step in (-away, away)]
        neighbours = np.array(
            [[memory_of.get((organ, z + step), -1) for step in steps] for organ, z in slices]
        )
        neighbours[answer.excluded] = -1
        rows = np.flatnonzero((neighbours >= 0).any(axis=1))
        return rows, Prompts(
            memory_copy=np.concatenate([first.memory_copy, first.row_query[known]]),
            memory_mask=first.memory_mask,
            row_query=first.row_query[rows],
            row_memory=np.hstack([first.row_memory, neighbours])[rows],
            predicted_mask=answer.masks[known],
            size=first.size,
        )
