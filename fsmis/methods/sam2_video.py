"""SAM2's video memory prompted by the labelled slices as they are: no copies, no matching."""

import numpy as np

from fsmis.data.protocol import Episode
from fsmis.methods.prompted import PromptedMethod, TrackingMethod
from fsmis.pipeline.prompting import (
    EncodedEpisode,
    by_organ,
    segment_prompted,
    support_of_each_slice,
    support_prompts,
)
from fsmis.segmenters.base import Answer, Tracker
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
