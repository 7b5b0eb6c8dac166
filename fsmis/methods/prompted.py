"""Methods that prompt a video model, and what any of them may do at test time."""

from abc import abstractmethod

import numpy as np

from fsmis.methods.base import Method
from fsmis.protocol import Episode
from fsmis.segmenters.answer import Answer
from fsmis.segmenters.sam2 import Sam2
from fsmis.test_time.largest_component import largest_component
from fsmis.test_time.scale_search import ScaleSearch
from fsmis.test_time.zoom import Zoom


class PromptedMethod(Method):
    """A method that answers with logits, so that its answer can be refined.

    Args:
        segmenter: the video model.
        scale: brings the support to the query's scale, before anything else.
        zoom: asks again on crops around what was found.
        largest_component: keep the largest connected part of each organ.
    """

    def __init__(
        self, segmenter: Sam2, scale: ScaleSearch, zoom: Zoom, largest_component: bool
    ) -> None:
        self.segmenter = segmenter
        self.scale = scale
        self.zoom = zoom
        self.largest_component = largest_component

    @abstractmethod
    def answer(self, episode: Episode) -> dict[str, Answer]:
        """The answer on the query slices of every organ's task; sets ``matches``."""

    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """See ``Method.segment``."""
        scaled = self.scale.search(self.segmenter, episode)
        answers = self.answer(scaled)
        matches = self.matches  # on the whole slices, as figures show them
        answers = self.zoom.refine(scaled, answers, self.answer)
        self.matches = matches
        masks = {organ: answer.masks for organ, answer in answers.items()}
        if self.largest_component:
            masks = {organ: largest_component(mask) for organ, mask in masks.items()}
        return masks
