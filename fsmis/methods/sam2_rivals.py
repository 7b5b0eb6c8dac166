"""Other training-free methods on SAM2's video memory, from their papers and public behaviour."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from fsmis.data.protocol import Episode, OrganTask
from fsmis.errors import UserError
from fsmis.methods.prompted import TrackingMethod
from fsmis.pipeline.matching import Match, Matcher, match
from fsmis.pipeline.prompting import EncodedEpisode, by_organ, support_prompts
from fsmis.segmenters.base import Answer, Segmenter
from fsmis.segmenters.features import Memory

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
