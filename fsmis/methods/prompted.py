"""Methods that prompt a video model, and what any of them may do at test time."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt, label
from scipy.special import expit

from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.methods import Method
from fsmis.pipeline.alignment import ScaleSearch, place_support
from fsmis.pipeline.extent import Extent, joined, looks
from fsmis.pipeline.prompting import Prompts
from fsmis.pipeline.whole_volume import served
from fsmis.pipeline.zoom import Zoom
from fsmis.segmenters import Answer, Segmenter, Tracker, largest_component, unable
from fsmis.segmenters.features import Features, batches

# A pixel too much costs a large mask little, one too few a small mask much; and the overlap that
# the model predicts is higher for large ones.
FAVOUR = 0.25

INTACT = 0.97  # share of itself that a labelled organ keeps when what leaks out is cut off
FINER = 0.8  # factor of the passage that is cut, where it keeps less


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
        return self.extent.limit(
            episode, answer, joined(seen), joined(labelled), places, self.largest_component
        )

    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """See ``Method.segment``."""
        scaled = self.scale.search(self.segmenter, episode)
        whole = scaled.whole_volume
        answers = self.settled(scaled, self.answer(scaled), by_presence=whole)
        matches = self.matches  # on the whole slices, as figures show them
        answers = self.zoom.refine(scaled, answers, self.answer)
        self.matches = matches
        answers = self.settled(scaled, answers, by_presence=whole or self.zoom.passes > 0)
        masks = {organ: answer.masks for organ, answer in answers.items()}
        if self.largest_component:
            masks = {organ: largest_component(mask) for organ, mask in masks.items()}
        held = {organ: mask.any(axis=(1, 2)) for organ, mask in masks.items()}
        self.confidence = {  # the overlap that the model predicts for its masks
            organ: float(answers[organ].iou[z].mean()) for organ, z in held.items() if z.any()
        }
        return masks

    def settled(
        self, episode: Episode, answers: dict[str, Answer], by_presence: bool
    ) -> dict[str, Answer]:
        """The answers with no pixel of two organs, see :func:`apart`, and without leaks, see
        :func:`without_leaks`; logits of pixels that are lost change their sign."""
        if self.non_overlap:
            answers = apart(episode, answers, by_presence)
        if not (self.largest_component and self.narrowest):
            return answers
        whole = {}
        for organ, answer in answers.items():
            labelled = episode.organs[organ].support_masks
            organ_alone = without_leaks(answer.masks, answer.iou, labelled, self.narrowest)
            leaks = answer.masks & ~organ_alone
            whole[organ] = replace(answer, logits=np.where(leaks, -answer.logits, answer.logits))
        return whole


def serving(method: Method, episode: Episode) -> Episode:
    """The episode with who serves found, by the features of a method that prompts; see
    :func:`served`."""
    return served(episode, method.segmenter if isinstance(method, PromptedMethod) else None)


def apart(episode: Episode, answers: dict[str, Answer], by_presence: bool) -> dict[str, Answer]:
    """Answers whose masks do not overlap, as labels never do: a pixel that several claim belongs to
    the strongest, the logits of the others change their sign there.

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
        settled[organ] = replace(answer, logits=np.where(lost, -answer.logits, answer.logits))
    return settled


def without_leaks(
    masks: np.ndarray, overlap: np.ndarray, labelled: np.ndarray, narrowest: float
) -> np.ndarray:
    """The largest part of an organ's masks; what a narrow passage joins to it is another part.

    A mask that leaks into a neighbour does so through a gap in the border between them. Passages
    that are narrower than ``2 * narrowest`` times the organ is thick are cut, as far as that leaves
    the labelled organ whole. Not part of the paper.

    Args:
        masks: bool ``[S, H, W]``, slices that follow one another.
        overlap: predicted, ``[S]``; a part counts for less where the model believes it less.
        labelled: bool ``[P, H, W]``, the organ in support slices.
        narrowest: share of the organ's half thickness: the distance of its innermost pixel from its
            edge, in all but the thickest tenth of its slices.
    """
    if not masks.any():
        return masks
    depth = _depth(masks)
    deepest = depth.max(axis=(1, 2))
    passage = narrowest * float(np.quantile(deepest[deepest > 0], 0.9))
    wholes = [largest_component(mask[None]) for mask in labelled]
    while passage >= 1 and any(
        _wide_part(whole, _depth(whole), None, passage).sum() < INTACT * whole.sum()
        for whole in wholes
    ):
        passage *= FINER
    return _wide_part(masks, depth, overlap, passage)


def _depth(masks: np.ndarray) -> np.ndarray:
    """Distance in pixels of those of a mask ``[S, H, W]`` from its edge in their slice."""
    edged = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    return np.stack([distance_transform_edt(mask)[1:-1, 1:-1] for mask in edged])


def _wide_part(
    masks: np.ndarray, depth: np.ndarray, overlap: np.ndarray | None, passage: float
) -> np.ndarray:
    """The largest part of the pixels deeper than ``passage``, what of the mask lies around it, and
    what goes on from there where the organ tapers off."""
    core = largest_component(depth > passage, overlap)
    if passage < 1 or not core.any():  # no passage is less than a pixel wide
        return largest_component(masks, overlap)
    slices = np.flatnonzero(core.any(axis=(1, 2))).tolist()
    kept = np.zeros_like(masks)
    for z in slices:
        kept[z] = masks[z] & (distance_transform_edt(~core[z]) <= passage + 1)
    for last, step, end in ((slices[0], -1, 0), (slices[-1], 1, len(masks) - 1)):
        for z in range(last, end, step):
            beyond = z + step
            parts, _ = label(masks[beyond])
            touching = np.unique(parts[kept[z] & masks[beyond]])
            tip = np.isin(parts, touching) & masks[beyond]
            if not 0 < tip.sum() <= kept[z].sum():
                break
            kept[beyond] = tip
    return kept


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
