"""The query volume as videos that open with the labelled support slices."""

import numpy as np

from fsmis.features.encoded_episode import EncodedEpisode, support_of_each_slice
from fsmis.features.propagation import propagate
from fsmis.methods.prompted import PromptedMethod
from fsmis.protocol import Episode
from fsmis.segmenters.answer import Answer


class Sam2Volume(PromptedMethod):
    """SAM2 as it tracks an object through a video (Ravi et al., arXiv 2408.00714).

    Each support slice, prompted with its mask, opens two videos of the query slices that it serves:
    from their middle upwards, and from their middle downwards. With ``n_parts=1`` that is the whole
    query volume in both directions. A segmented slice is memory of the slices after it in its
    video; the middle slice is in both, and the upward one answers for it.
    """

    def answer(self, episode: Episode) -> dict[str, Answer]:
        """See ``PromptedMethod.answer``."""
        encoded = EncodedEpisode.encode(self.segmenter, episode)
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
        support = self.segmenter.memorise(encoded.supports[support_rows], np.stack(support_masks))
        found = Answer.cat(propagate(self.segmenter, encoded.queries, videos, support, size))
        # Of the slices that two videos hold, the middle ones, the later answers.
        place_of = {place: row for row, place in enumerate(places)}
        self.matches = support_of_each_slice(episode)
        return {
            organ: found[[place_of[organ, slice_] for slice_ in range(len(task.query_slices))]]
            for organ, task in episode.organs.items()
        }
