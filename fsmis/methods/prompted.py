"""Methods that prompt a video model, and what any of them may do at test time."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from scipy.special import expit

from fsmis.data.protocol import Episode, OrganTask
from fsmis.errors import UserError
from fsmis.methods import Method
from fsmis.pipeline.alignment import ScaleSearch, place_support
from fsmis.pipeline.extent import Extent, joined, looks
from fsmis.pipeline.masks import Borders, Greys, largest_component, without_leaks
from fsmis.pipeline.prompting import Prompts
from fsmis.pipeline.whole_volume import served
from fsmis.pipeline.zoom import Zoom
from fsmis.segmenters import Answer, Segmenter, Tracker, unable
from fsmis.segmenters.features import Features, batches

# A pixel too much costs a large mask little, one too few a small mask much; and the overlap that
# the model predicts is higher for large ones.
FAVOUR = 0.25


class PromptedMethod(Method):
    """A method that answers with logits, so that its answer can be refined.

    Args:
        segmenter: the video model.
        scale: brings the support to the query's scale, before anything else.
        extent: rules slices out that lack the organ, after the first pass.
        zoom: asks again on crops around what was found.
        largest_component: keep the largest connected part of each organ.
        narrowest: with it, see :func:`without_leaks`; 0: what is connected is one part.
        non_overlap: organs do not overlap, see :func:`apart`.
        greys: ends organs of whole volumes where their grey value changes.
        borders: draws the masks' borders anew at the end.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        scale: ScaleSearch,
        extent: Extent,
        zoom: Zoom,
        largest_component: bool,
        non_overlap: bool,
        narrowest: float = 0.0,
        greys: Greys | None = None,
        borders: Borders | None = None,
    ) -> None:
        if not 0 <= narrowest < 1:
            raise UserError(f"method.narrowest={narrowest}: must be in [0, 1)")
        self.segmenter = segmenter
        self.scale = scale
        self.extent = extent
        self.zoom = zoom
        self.largest_component = largest_component
        self.non_overlap = non_overlap
        self.narrowest = narrowest
        self.greys = greys
        self.borders = borders

    @abstractmethod
    def answer(self, episode: Episode) -> dict[str, Answer]:
        """The answer on the query slices of every organ's task; sets ``matches``."""

    def within_extent(
        self, episode: Episode, answer: Answer, images: Features, prompts: Prompts
    ) -> Answer:
        """The rows of a first pass, those beyond the organs' extent ruled out.

        Args:
            episode: its tasks' slices are the rows, in order.
            answer: R rows.
            images: features of copies and query slices, which the prompts number.
            prompts: of the rows; the nearest memory of each stands for the labelled slice.
        """
        if not self.extent.applies(episode):
            return answer
        nearest = prompts.row_memory[:, -1]
        seen, labelled = [], []
        # a few rows at a time: each has the features of two images
        for rows in batches(np.arange(len(answer)), self.segmenter.batch_size):
            memories = nearest[rows]
            of_query, of_copies = prompts.row_query[rows], prompts.memory_copy[memories]
            seen.append(looks(images[of_query], answer.logits[rows] > 0))
            labelled.append(looks(images[of_copies], prompts.memory_mask[memories]))
        places = None
        if self.extent.place:  # the rows of the first organ are all query slices
            slices = prompts.row_query[: len(episode.query_slices)]
            query = (images[rows] for rows in batches(slices, self.segmenter.batch_size))
            places = place_support(self.segmenter, episode, query)
        narrowest = self.narrowest if self.largest_component else None
        return self.extent.limit(episode, answer, joined(seen), joined(labelled), places, narrowest)

    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """See ``Method.segment``."""
        scaled = self.scale.search(self.segmenter, episode)
        whole = scaled.whole_volume
        answers = self.answer(scaled)
        if self.non_overlap:
            answers = apart(scaled, answers, by_presence=whole)
        matches = self.matches  # on the whole slices, as figures show them
        answers = self.zoom.refine(scaled, answers, self.answer, self.main_part)
        self.matches = matches
        if self.non_overlap:
            answers = apart(scaled, answers, by_presence=whole or self.zoom.passes > 0)
        masks = {organ: answer.masks for organ, answer in answers.items()}
        if self.largest_component:
            masks = {o: self.main_part(scaled.organs[o], answer) for o, answer in answers.items()}
        if self.greys is not None and self.extent.applies(scaled):
            masks = self.greys.cut(scaled, masks, answers)
            if self.largest_component:
                masks = {o: largest_component(mask, answers[o].iou) for o, mask in masks.items()}
        held = {organ: mask.any(axis=(1, 2)) for organ, mask in masks.items()}
        self.confidence = {  # the overlap that the model predicts for its masks
            organ: float(answers[organ].iou[z].mean()) for organ, z in held.items() if z.any()
        }
        if self.borders is not None:
            masks = self.borders.redraw(scaled, masks, self.non_overlap)
        return masks

    def main_part(self, task: OrganTask, answer: Answer) -> np.ndarray:
        """The largest part of an organ's masks, bool ``[S, H, W]``, without leaks if these are cut,
        see :func:`without_leaks`."""
        if not (self.largest_component and self.narrowest):
            return largest_component(answer.masks)
        return without_leaks(answer.masks, answer.iou, task.support_masks, self.narrowest)


def serving(method: Method, episode: Episode) -> Episode:
    """The episode with who serves found, by the features of a method that prompts; see
    :func:`served`."""
    return served(episode, method.segmenter if isinstance(method, PromptedMethod) else None)


def apart(episode: Episode, answers: dict[str, Answer], by_presence: bool) -> dict[str, Answer]:
    """Answers whose masks do not overlap, as labels never do: a pixel that several claim belongs to
    the strongest.

    A claim is the pixel's probability times the mask's predicted overlap, over its area to the
    power of ``FAVOUR``; if ``by_presence``, times its object score: in a whole volume, whose slices
    may lack an organ, and of crops, where it is surer than on whole slices. Not part of the paper;
    SAM2's predictor has it as ``non_overlap_masks``, by logits alone.
    """
    strongest = np.zeros(episode.query.image.shape, np.float32)
    claims = {}
    for organ, answer in answers.items():
        masks, slices = answer.masks, episode.organs[organ].query_slices
        areas = np.maximum(1, masks.sum(axis=(1, 2)))
        weights = answer.iou / areas**FAVOUR
        if by_presence:
            weights = weights * np.maximum(0, answer.object_score)
        claim = masks * expit(answer.logits) * weights[:, None, None]
        claims[organ] = claim.astype(np.float32)  # as the strongest, which they are compared with
        strongest[slices] = np.maximum(strongest[slices], claims[organ])
    settled = {}
    for organ, answer in answers.items():
        lost = answer.masks & (claims[organ] < strongest[episode.organs[organ].query_slices])
        settled[organ] = answer.without(lost)
    return settled


class TrackingMethod(PromptedMethod):
    """One that goes through the slices as through a video; its segmenter tracks.

    Args:
        segmenter: the video model.
        parts: see :class:`PromptedMethod`.

    Raises:
        UserError: the segmenter does not track.
    """

    def __init__(self, segmenter: Segmenter, **parts: Any) -> None:
        super().__init__(segmenter, **parts)
        if not isinstance(segmenter, Tracker):
            raise unable(segmenter, "track")
        self.tracker = segmenter
