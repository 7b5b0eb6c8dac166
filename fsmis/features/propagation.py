"""Videos that open with labelled frames: each segmented frame is memory of the ones after it."""

import numpy as np

from fsmis.batches import batches
from fsmis.segmenters.answer import Answer
from fsmis.segmenters.features import Features, Memory
from fsmis.segmenters.sam2 import Sam2


def propagate(
    segmenter: Sam2,
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
    segmenter: Sam2,
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
