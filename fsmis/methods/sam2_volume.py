"""The query volume as videos that open with the labelled support slices."""

import numpy as np

from fsmis.features.encoded_episode import EncodedEpisode, support_of_each_slice
from fsmis.features.propagation import propagate
from fsmis.methods.base import Method
from fsmis.protocol import Episode
from fsmis.segmenters.sam2 import Sam2


class Sam2Volume(Method):
    """SAM2 as it tracks an object through a video (Ravi et al., arXiv 2408.00714).

    Each support slice, prompted with its mask, opens two videos of the query slices that it serves:
    from their middle upwards, and from their middle downwards. With ``n_parts=1`` that is the whole
    query volume in both directions. A segmented slice is memory of the slices after it in its
    video; the middle slice is in both, and the upward one answers for it.
    """

    def __init__(self, segmenter: Sam2) -> None:
        self.segmenter = segmenter

    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """See ``Method.segment``."""
        encoded = EncodedEpisode.encode(self.segmenter, episode)
        size = episode.query.image.shape[1:]
        support_rows, support_masks, videos, places = [], [], [], []
        masks = {}
        for organ, task in episode.organs.items():
            masks[organ] = np.zeros((len(task.query_slices), *size), bool)
            rows, supports = encoded.query_rows(task), encoded.support_rows(task)
            for part in np.unique(task.part):
                served = np.flatnonzero(task.part == part)
                middle = len(served) // 2
                for video in (served[middle::-1], served[middle:]):
                    support_rows.append(supports[part])
                    support_masks.append(task.support_masks[part])
                    videos.append(rows[video])
                    places.append((organ, video))
        support = self.segmenter.memorise(encoded.supports[support_rows], np.stack(support_masks))
        logits = propagate(self.segmenter, encoded.queries, videos, support, size)
        for (organ, video), found in zip(places, logits, strict=True):
            masks[organ][video] = (found > 0).cpu().numpy()
        self.matches = support_of_each_slice(episode)
        return masks
