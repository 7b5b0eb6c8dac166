"""The support brought to the query's scale, since neither headers nor patients guarantee it.

Not part of the paper. A few query slices are segmented with the support at several scales; the
scale with the best predicted overlap is kept.
"""

from dataclasses import replace

import numpy as np

from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.pipeline.crops import Crops
from fsmis.pipeline.prompting import single_support
from fsmis.segmenters.base import Answer, Segmenter


class ScaleSearch:
    """Try scales of the support slices about their centres; ``found`` is the last episode's.

    Args:
        scales: factors of the support's size, tried besides 1; empty turns the search off.
        slices: query slices to try for each organ, spread over its task.
        margin: by how much the score of a scale must exceed that of 1 to be chosen.
    """

    def __init__(self, scales: list[float], slices: int, margin: float) -> None:
        if any(not 0.1 <= scale <= 10 for scale in scales) or slices < 1 or not margin >= 0:
            raise UserError(
                f"method.scale.scales={list(scales)}, slices={slices}, margin={margin}: choose "
                "scales from 0.1 to 10, slices from 1, margin from 0"
            )
        self.scales = list(scales)
        self.slices = slices
        self.margin = margin
        self.found = 1.0

    def search(self, segmenter: Segmenter, episode: Episode) -> Episode:
        """The episode with its support at the best scale; unchanged where that is 1."""
        self.found = 1.0
        if not self.scales or not episode.organs:
            return episode
        few = _some_slices(episode, self.slices)
        scores = {}
        for scale in (1.0, *(s for s in self.scales if s != 1)):
            answers = single_support(segmenter, scaled(few, scale)).values()
            scores[scale] = float(np.mean([_score(answer) for answer in answers]))
        best = max(scores, key=lambda scale: scores[scale])
        if scores[best] > scores[1.0] + self.margin:
            self.found = best
        return scaled(episode, self.found)


def _score(answer: Answer) -> float:
    """Mean predicted overlap of the better half of the slices, since some may lack the organ."""
    iou = np.sort(answer.iou * answer.present)
    return float(iou[len(iou) // 2 :].mean())


def scaled(episode: Episode, scale: float) -> Episode:
    """The episode with its support slices enlarged about their centres, as though the support's
    spacing were this much larger than its header says."""
    if scale == 1:
        return episode
    height, width = episode.support.image.shape[1:]
    slices = episode.support_slices
    middle = np.tile([height / 2, width / 2], (len(slices), 1))
    crops = Crops(middle, np.array([height, width]) / scale, (height, width))
    image = np.zeros_like(episode.support.image)
    image[slices] = crops.cut(episode.support.image[slices], crops.shape)
    organs = {}
    for organ, task in episode.organs.items():
        of_task = crops[np.searchsorted(slices, task.support_slices)]
        masks = of_task.cut_masks(task.support_masks, crops.shape)
        organs[organ] = replace(task, support_masks=masks)
    support = replace(episode.support, id=f"{episode.support.id} x{scale:g}", image=image)
    return replace(episode, support=support, organs=organs)


def _some_slices(episode: Episode, count: int) -> Episode:
    rows = {}
    for organ, task in episode.organs.items():
        spread = np.linspace(0, len(task.query_slices) - 1, count + 2).round().astype(int)
        spread = np.unique(spread)
        rows[organ] = spread[1:-1] if len(spread) > 2 else spread
    return episode.asking(rows)
