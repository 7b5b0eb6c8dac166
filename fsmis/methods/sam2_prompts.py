"""SAM2 on single images, prompted where a query slice looks like the labelled organ.

After PerSAM (Zhang et al., "Personalize Segment Anything Model with One Shot", ICLR 2024, arXiv
2305.03048). Points and box corners are (x, y) in pixels, with SAM's labels.
"""

from abc import abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import label
from torch import Tensor

from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.methods import Method
from fsmis.pipeline.prompting import EncodedEpisode, support_of_each_slice
from fsmis.segmenters import Segmenter, unable
from fsmis.segmenters.features import (
    Features,
    batches,
    cosine_logits,
    masked_average,
    on_grid,
    resized,
)
from fsmis.segmenters.network import NetworkSegmenter, gated
from fsmis.segmenters.steps import BACKGROUND, FOREGROUND, LOWER_RIGHT, UPPER_LEFT


def similarity(support: Tensor, foreground: Tensor, query: Tensor, side: int) -> Tensor:
    """Cosine ``[B, side, side]`` of query features to the mean feature of the organ.

    ``support`` and ``query`` are features ``[B, C, h, w]``; ``foreground`` weights the support,
    ``[B, h, w]`` in [0, 1].
    """
    organ = masked_average(support, foreground)[:, None]
    cosine = cosine_logits(query, organ, scale=1.0)[:, None]
    return F.interpolate(cosine, (side, side), mode="bilinear", align_corners=False)[:, 0]


def extreme_points(maps: Tensor) -> tuple[Tensor, Tensor]:
    """A foreground point where maps ``[B, h, w]`` are highest, a background point where lowest.

    Returns coordinates float32 ``[B, 2, 2]`` and labels int32 ``[B, 2]``.
    """
    flat = maps.flatten(1)
    places = torch.stack([flat.argmax(1), flat.argmin(1)], 1)
    width = maps.shape[2]
    coordinates = torch.stack([places % width, places // width], 2).float()
    return coordinates, _labels(FOREGROUND, BACKGROUND, like=maps)


def box_around_peak(maps: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The box of the connected region around the highest point of maps ``[B, h, w]``.

    The region is where a map, scaled to [0, 1], is at least ``threshold``. Returns the upper left
    and lower right corners, in the form of :func:`extreme_points`.
    """
    regions = []
    for values in maps.float().cpu().numpy():
        region, _ = label(values >= values.min() + threshold * np.ptp(values))
        regions.append(region == region.flat[values.argmax()])
    return box_of_masks(torch.from_numpy(np.stack(regions)).to(maps.device))


def box_of_masks(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Corners, as in :func:`box_around_peak`, of masks bool ``[B, h, w]``, none of them empty."""
    corners = np.stack([_corners(mask) for mask in masks.cpu().numpy()])
    coordinates = torch.tensor(corners, dtype=torch.float32, device=masks.device)
    return coordinates, _labels(UPPER_LEFT, LOWER_RIGHT, like=masks)


def _corners(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])


def _labels(*pair: int, like: Tensor) -> Tensor:
    return torch.tensor(pair, dtype=torch.int32, device=like.device).expand(len(like), 2)


class SimilarityPrompt(Method):
    """Prompt each query slice where its features resemble the organ's on the support slice.

    The training-free PerSAM on SAM2: a similarity map, a prompt from it, SAM's image path without
    memory, and (with ``refine``) a second pass with the first answer as mask and box prompt.
    PerSAM's changes to the attention of the decoder are left out. Raises UserError where the
    segmenter takes no points.
    """

    def __init__(self, segmenter: Segmenter, refine: bool) -> None:
        if not isinstance(segmenter, NetworkSegmenter):
            raise unable(segmenter, "take points")
        self.segmenter = segmenter
        self.refine = refine

    @abstractmethod
    def prompts(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates float ``[B, P, 2]``, (x, y) in pixels, and SAM's labels int32 ``[B, P]``.

        ``maps`` are cosine similarities ``[B, S, S]`` at the size of the network's image.
        """

    @torch.inference_mode()
    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
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


class Sam2Box(SimilarityPrompt):
    """Prompt with the box around the most similar region; ``threshold`` in (0, 1)."""

    def __init__(self, segmenter: Segmenter, refine: bool, threshold: float) -> None:
        super().__init__(segmenter, refine)
        if not 0 < threshold < 1:
            raise UserError(f"method.threshold={threshold}: must be between 0 and 1")
        self.threshold = threshold

    def prompts(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return box_around_peak(maps, self.threshold)


class Sam2Points(SimilarityPrompt):
    """Prompt with the most similar place as organ and the least similar as background."""

    def prompts(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return extreme_points(maps)
