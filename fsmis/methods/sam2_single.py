"""SAM2 prompted once with the support slice: what the paper's three stages add to."""

import numpy as np

from fsmis.features.encoded_episode import EncodedEpisode, support_of_each_slice
from fsmis.methods.base import Method
from fsmis.prompting import Prompts, segment_prompted
from fsmis.protocol import Episode
from fsmis.segmenters.sam2 import Sam2


class Sam2Single(Method):
    """A video of two frames for each query slice: the support slice of its part, and itself.

    The same as ``AugmentMatchPrompt`` without copies, with one memory and no second pass.
    """

    def __init__(self, segmenter: Sam2) -> None:
        self.segmenter = segmenter

    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """See ``Method.segment``."""
        encoded = EncodedEpisode.encode(self.segmenter, episode)
        tasks = list(episode.organs.values())
        parts = [len(task.support_slices) for task in tasks]
        first = np.cumsum([0, *parts[:-1]])  # memory of each organ's first part
        prompts = Prompts(
            memory_copy=np.concatenate([encoded.support_rows(task) for task in tasks]),
            memory_mask=np.concatenate([task.support_masks for task in tasks]),
            row_query=np.concatenate([encoded.query_rows(task) for task in tasks]),
            row_memory=np.concatenate(
                [start + task.part for start, task in zip(first, tasks, strict=True)]
            )[:, None],
        )
        logits = segment_prompted(self.segmenter, encoded.queries, encoded.supports, prompts)
        ends = np.cumsum([len(task.query_slices) for task in tasks])
        self.matches = support_of_each_slice(episode)
        return dict(zip(episode.organs, np.split(logits > 0, ends[:-1]), strict=True))
