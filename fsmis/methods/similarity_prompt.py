"""SAM2 on single images, asked for what looks like the labelled organ."""

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from fsmis.batches import batches
from fsmis.features.encoded_episode import EncodedEpisode, support_of_each_slice
from fsmis.features.prototypes import on_grid
from fsmis.features.similarity import box_of_masks, similarity
from fsmis.methods.base import Method
from fsmis.protocol import Episode
from fsmis.segmenters.features import Features
from fsmis.segmenters.logits import gated, resized
from fsmis.segmenters.sam2 import Sam2


class SimilarityPrompt(Method):
    """A prompt on each query slice, where its features are like the organ's on the support slice.

    The training-free PerSAM (Zhang et al., "Personalize Segment Anything Model with One Shot", ICLR
    2024, arXiv 2305.03048) on SAM2: a similarity map, a prompt from it, SAM's image path without
    any memory, and a second pass with the first answer as mask and box prompt. PerSAM's changes to
    the attention of the decoder are left out.

    Args:
        segmenter: encoder and decoder.
        refine: do the second pass.
    """

    def __init__(self, segmenter: Sam2, refine: bool) -> None:
        self.segmenter = segmenter
        self.refine = refine

    @abstractmethod
    def prompts(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates float ``[B, P, 2]``, (x, y) in pixels, and SAM's labels int32 ``[B, P]``.

        Args:
            maps: cosine similarities ``[B, S, S]`` at the size of the network's image.
        """

    @torch.inference_mode()
    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """See ``Method.segment``."""
        encoded = EncodedEpisode.encode(self.segmenter, episode)
        size = episode.query.image.shape[1:]
        batch = self.segmenter.batch_size
        masks = {}
        for organ, task in episode.organs.items():
            support = encoded.supports[encoded.support_rows(task)]
            given = torch.as_tensor(task.support_masks, device=self.segmenter.device)
            logits = [
                self._answer(support[part], given[part], encoded.queries[rows])
                for part, rows in zip(
                    batches(task.part, batch),
                    batches(encoded.query_rows(task), batch),
                    strict=True,
                )
            ]
            masks[organ] = (resized(torch.cat(logits), size) > 0).cpu().numpy()
        self.matches = support_of_each_slice(episode)
        return masks

    def _answer(self, support: Features, given: Tensor, queries: Features) -> Tensor:
        """Quarter-resolution logits ``[B, 1, 4h, 4h]`` of B query slices."""
        organ, query = support.levels[-1].float(), queries.levels[-1].float()
        maps = similarity(organ, on_grid(given, organ.shape[-2:]), query, self.segmenter.image_size)
        coordinates, labels = self.prompts(maps)
        logits = self._ask(queries, coordinates, labels)
        rows = (logits > 0).flatten(1).any(1).nonzero()[:, 0]
        if not self.refine or not len(rows):
            return logits
        found = logits[rows]
        corners, corner_labels = box_of_masks(found[:, 0] > 0)
        corners *= self.segmenter.image_size / found.shape[-1]
        logits[rows] = self._ask(
            queries[rows],
            torch.cat([coordinates[rows], corners], 1),
            torch.cat([labels[rows], corner_labels], 1),
            found,
        )
        return logits

    def _ask(
        self,
        queries: Features,
        coordinates: Tensor,
        labels: Tensor,
        previous: Tensor | None = None,
    ) -> Tensor:
        with self.segmenter.autocast():
            mask, _, object_score = self.segmenter.decode_points(
                queries, coordinates, labels, previous
            )
        return gated(mask, object_score)
