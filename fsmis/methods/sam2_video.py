"""SAM2's video memory prompted by the labelled slices as they are: no copies, no matching.

``sam2_single`` and ``sam2_volume`` are SAM2 alone; FATE-SAM and FS-MedSAM2 are other training-free
methods, from their papers and public behaviour.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from fsmis.data.protocol import Episode, OrganTask
from fsmis.errors import UserError
from fsmis.methods.prompted import PromptedMethod, TrackingMethod
from fsmis.pipeline import Match
from fsmis.pipeline.matching import Matcher, match
from fsmis.pipeline.prompting import (
    EncodedEpisode,
    by_organ,
    segment_prompted,
    support_of_each_slice,
    support_prompts,
)
from fsmis.segmenters import Answer, Segmenter, Tracker
from fsmis.segmenters.features import Features, Memory, batches


class Sam2Single(PromptedMethod):
    """A video of two frames for each query slice: the support slice of its part, and itself.

    The same as ``AugmentMatchPrompt`` without copies, with one memory and no second pass.
    """

    def answer(self, episode: Episode) -> dict[str, Answer]:
        """See ``PromptedMethod.answer``."""
        images, prompts = support_prompts(episode, EncodedEpisode.encode(self.segmenter, episode))
        answer = segment_prompted(self.segmenter, images, images, prompts)
        self.matches = support_of_each_slice(episode)
        return by_organ(episode, self.within_extent(episode, answer, images, prompts))


def propagate(
    segmenter: Tracker,
    features: Features,
    videos: list[np.ndarray],
    support: Memory,
    size: tuple[int, int],
) -> list[Answer]:
    """Segment V videos frame after frame, as ``SAM2VideoPredictor`` would each of them.

    Args:
        segmenter: the video model; up to ``batch_size`` videos of one length go together.
        features: of all frames.
        videos: int ``[L]`` for each video, the rows of ``features`` that are its frames, in order.
        support: memory of the prompted frame that opens each video, V rows.
        size: (H, W) of the logits.

    Returns:
        The answer of each video, L rows.
    """
    lengths = np.array([len(video) for video in videos])
    answers: dict[int, Answer] = {}
    for length in np.unique(lengths):
        alike = np.flatnonzero(lengths == length)
        for batch in batches(alike, segmenter.batch_size):
            frames = np.stack([videos[video] for video in batch], axis=1)
            found = _propagate_batch(segmenter, features, frames, support[batch], size)
            for place, video in enumerate(batch.tolist()):
                answers[video] = Answer.cat([frame[[place]] for frame in found])
    return [answers[video] for video in range(len(videos))]


def _propagate_batch(
    segmenter: Tracker,
    features: Features,
    frames: np.ndarray,
    support: Memory,
    size: tuple[int, int],
) -> list[Answer]:
    """The answers, V rows each, of frames int ``[L, V]``, rows of the features."""
    answers: list[Answer] = []
    past: list[Memory] = []
    for rows in frames:
        found, memory = segmenter.track(features[rows], [support], past, 1 + len(frames), size)
        answers.append(found)
        past.append(memory)
    return answers


class Sam2Volume(TrackingMethod):
    """SAM2 as it tracks an object through a video (Ravi et al., arXiv 2408.00714).

    Each support slice, prompted with its mask, opens two videos of the query slices that it serves:
    from their middle upwards, and from their middle downwards. With ``n_parts=1`` that is the whole
    query volume in both directions. A segmented slice is memory of the slices after it in its
    video; the middle slice is in both, and the upward one answers for it.
    """

    def answer(self, episode: Episode) -> dict[str, Answer]:
        """See ``PromptedMethod.answer``."""
        segmenter = self.tracker
        encoded = EncodedEpisode.encode(segmenter, episode)
        size = episode.query.image.shape[1:]
        support_rows, support_masks, videos, places = [], [], [], []
        for organ, task in episode.organs.items():
            rows, supports = encoded.query_rows(task), encoded.support_rows(task)
            for part in np.unique(task.part):
                served = np.flatnonzero(task.part == part)
                middle = len(served) // 2
                for video in (served[middle::-1], served[middle:]):
                    support_rows.append(supports[part])
                    support_masks.append(task.support_masks[part])
                    videos.append(rows[video])
                    places += [(organ, slice_) for slice_ in video.tolist()]
        support = segmenter.memorise(encoded.supports[support_rows], np.stack(support_masks))
        found = Answer.cat(propagate(segmenter, encoded.queries, videos, support, size))
        # Of the slices that two videos hold, the middle ones, the later answers.
        place_of = {place: row for row, place in enumerate(places)}
        answer = found[
            [
                place_of[organ, slice_]
                for organ, task in episode.organs.items()
                for slice_ in range(len(task.query_slices))
            ]
        ]
        self.matches = support_of_each_slice(episode)
        within = self.within_extent(episode, answer, *support_prompts(episode, encoded))
        return by_organ(episode, within)


Step = tuple[int, Sequence[int]]  # a slice, and those that it remembers, nearest last


def down_then_up(count: int) -> list[Step]:
    """From the middle of so many slices to the first, then from above it to the last."""
    middle = count // 2
    down: list[Step] = [(here, range(middle, here, -1)) for here in range(middle, -1, -1)]
    return down + [(here, range(here)) for here in range(middle + 1, count)]


def up_then_down(count: int) -> list[Step]:
    """From the middle of so many slices to the last, then from below it to the first."""
    middle = count // 2
    up: list[Step] = [(here, range(middle, here)) for here in range(middle, count)]
    return up + [(here, range(count - 1, here, -1)) for here in range(middle - 1, -1, -1)]


class Walk(TrackingMethod):
    """Walks through the slices of an organ in two legs, the second remembering the first.

    Each slice is conditioned on labelled slices and on what was found on those remembered, as a
    frame of ``SAM2VideoPredictor`` is; SAM2 takes the six nearest of these, and 15 pointers.
    """

    @abstractmethod
    def steps(self, count: int) -> list[Step]:
        """The way through so many slices, each of them once."""

    @abstractmethod
    def prompts(self, episode: Episode, encoded: EncodedEpisode, task: OrganTask) -> np.ndarray:
        """Int ``[S, k]``: of the task's labelled slices those that prompt each query slice, nearest
        last."""

    def answer(self, episode: Episode) -> dict[str, Answer]:
        """See ``PromptedMethod.answer``."""
        encoded = EncodedEpisode.encode(self.segmenter, episode)
        size = episode.query.image.shape[1:]
        answers, self.matches = [], {}
        for organ, task in episode.organs.items():
            support = self.segmenter.memorise(
                encoded.supports[encoded.support_rows(task)], task.support_masks
            )
            prompts, rows = self.prompts(episode, encoded, task), encoded.query_rows(task)
            frames = len(rows) + prompts.shape[1]
            found: dict[int, tuple[Answer, Memory]] = {}
            for here, before in self.steps(len(rows)):
                given = [support[[label]] for label in prompts[here]]
                past = [found[slice_][1] for slice_ in before]
                query = encoded.queries[rows[[here]]]
                found[here] = self.tracker.track(query, given, past, frames, size)
            answers += [found[here][0] for here in range(len(rows))]
            self.matches[organ] = [
                Match(
                    episode.support.image[task.support_slices[nearest]],
                    task.support_masks[nearest],
                    prompts.shape[1],
                )
                for nearest in prompts[:, -1]
            ]
        images, by_part = support_prompts(episode, encoded)
        within = self.within_extent(episode, Answer.cat(answers), images, by_part)
        return by_organ(episode, within)


class FateSam(Walk):
    """FATE-SAM: the labelled slices nearest to each query slice prompt it.

    He et al., "Few-Shot Adaptation of Training-Free Foundation Model for 3D Medical Image
    Segmentation", arXiv 2501.09138. It chooses from whole labelled volumes; here an organ has
    ``protocol.n_parts`` labelled slices, and with as many ``neighbours`` all of them prompt.

    Args:
        segmenter: the video model.
        matcher: distance of slices, in the paper that of the encoder's features.
        neighbours: labelled slices that prompt each query slice, all where there are fewer.
        parts: see :class:`~fsmis.methods.prompted.PromptedMethod`.

    Raises:
        UserError: ``neighbours`` is not a count.
    """

    def __init__(
        self, segmenter: Segmenter, matcher: Matcher, neighbours: int, **parts: Any
    ) -> None:
        super().__init__(segmenter, **parts)
        if not isinstance(neighbours, int) or neighbours < 1:
            raise UserError(f"method.neighbours={neighbours}: must be a whole number, 1 or more")
        self.matcher = matcher
        self.neighbours = neighbours

    def steps(self, count: int) -> list[Step]:
        """See ``Walk.steps``."""
        return down_then_up(count)

    def prompts(self, episode: Episode, encoded: EncodedEpisode, task: OrganTask) -> np.ndarray:
        """See ``Walk.prompts``."""
        k = min(self.neighbours, len(task.support_slices))
        if self.matcher.on_features:
            queries = encoded.queries[encoded.query_rows(task)]
            return match(self.matcher, queries, encoded.supports[encoded.support_rows(task)], k)
        labelled = episode.support.image[task.support_slices]
        return match(self.matcher, episode.query.image[task.query_slices], labelled, k)


class FsMedSam2(Walk):
    """FS-MedSAM2: the middle labelled slice lies in the middle of the query volume, as its video.

    Bai et al., "FS-MedSAM2: Exploring the Potential of SAM2 for Few-Shot Medical Image Segmentation
    without Fine-tuning", arXiv 2409.04298 (S1SFQ from the middle). One labelled slice serves the
    whole volume, whatever ``protocol.n_parts``. Its scores are Dice of voxels pooled over scans,
    the column ``pooled Dice`` of the tables. On the way down its predictor leaves one place in the
    video empty, that of the labelled slice; here slices remembered from the way up are one place
    nearer.
    """

    def steps(self, count: int) -> list[Step]:
        """See ``Walk.steps``."""
        return up_then_down(count)

    def prompts(self, episode: Episode, encoded: EncodedEpisode, task: OrganTask) -> np.ndarray:
        """See ``Walk.prompts``."""
        return np.full((len(task.query_slices), 1), len(task.support_slices) // 2)
