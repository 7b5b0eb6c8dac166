"""The support aligned with the query: its scale in the slices, by crops, its place along the body.

Not part of the paper: neither headers nor patients guarantee a scale, and no protocol tells the
place in a volume of one's own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from skimage.filters import threshold_otsu
from torch import Tensor

from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.pipeline.prompting import EncodedEpisode, single_support
from fsmis.segmenters import Segmenter
from fsmis.segmenters.features import Features, batches

log = logging.getLogger(__name__)

# Of the place along the body:
GRID = 8  # cells along each side of the body, whose mean features describe a slice
SAMPLES = 4  # along each side of a cell
STRETCHES = (0.8, 0.9, 1.0, 1.1, 1.25)  # of the support along z, for bodies of other lengths
STEP = 0.5  # query slices between two shifts that are tried
OVERLAP = 0.6  # least share of the shorter volume that the two have in common
FEWEST = 3  # slices, below which there is nothing to move along
DOUBT = 0.3  # standard errors taken off a mean cosine: of a short overlap it may be high by chance


@dataclass(frozen=True, eq=False)
class Crops:
    """One window for each of N slices of H x W pixels; it may reach beyond its slice.

    Attributes:
        centres: float ``[N, 2]``, (y, x) in pixels, 0 at the edge of the first pixel.
        sides: float ``[2]``, height and width in pixels, of all windows.
        shape: (H, W).
    """

    centres: np.ndarray
    sides: np.ndarray
    shape: tuple[int, int]

    def __getitem__(self, rows: np.ndarray) -> Crops:
        return replace(self, centres=self.centres[rows])

    @property
    def magnification(self) -> float:
        """How many times the slice is as large as a window, along the axis where it is least."""
        return float((self.shape / self.sides).min())

    def cut(self, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Crops float32 ``[N, *size]`` of ``[N, H, W]`` in [0, 1], linear; beyond the slice its
        edge."""
        pixels = torch.from_numpy(np.ascontiguousarray(images, np.float32))[:, None]
        smaller = np.minimum(1, size / self.sides)
        if (smaller < 1).any():  # averaged first, so that nothing falls between the samples
            shape = np.maximum(1, np.rint(smaller * self.shape)).astype(int).tolist()
            pixels = F.interpolate(pixels, shape, mode="bilinear", antialias=True)
        grid = self._grid(2 * self.centres / self.shape - 1, self.sides / self.shape, size)
        cut = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        return cut[:, 0].clamp(0, 1).numpy()  # weights may add up to a little more than 1

    def cut_masks(self, masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The same of bool masks; of one that is not empty something stays, however thin."""
        cut = self.cut(masks, size)
        kept = cut >= np.clip(cut.max(axis=(1, 2), keepdims=True), 1e-6, 0.5)
        lost = masks.any(axis=(1, 2)) & ~kept.any(axis=(1, 2))  # between two samples
        kept[lost, size[0] // 2, size[1] // 2] = True
        return kept

    def put_back(self, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps ``[N, size, size]`` of the crops on their slices, linear: float32 ``[N, H, W]``, and
        bool ``[N, H, W]``, which pixels the crops hold."""
        half = self.sides / self.shape
        centres = 2 * self.centres / self.shape - 1
        grid = self._grid(-centres / half, 1 / half, self.shape)
        pixels = torch.from_numpy(np.ascontiguousarray(maps, np.float32))[:, None]
        back = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        return back[:, 0].numpy(), (grid.abs() <= 1).all(-1).numpy()

    def _grid(self, centres: np.ndarray, scales: np.ndarray, size: tuple[int, int]) -> Tensor:
        """Where to sample, for output pixels u in [-1, 1]: ``centres + scales * u``."""
        theta = torch.zeros(len(centres), 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = float(scales[1]), float(scales[0])
        theta[:, :, 2] = torch.from_numpy(np.ascontiguousarray(centres[:, ::-1], np.float32))
        return F.affine_grid(theta, [len(centres), 1, *size], align_corners=False)


class ScaleSearch:
    """Segments a few query slices with the support at several scales, about the centres of its
    slices, and keeps that of whose masks the model is surest; ``found`` is the last episode's. A
    scale at which an organ would lie beyond the slice is not tried.

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
        few = some_slices(episode, self.slices).labelled_alone()
        encoded = EncodedEpisode.encode(segmenter, few)
        scores = {1.0: _score(few, segmenter, encoded)}
        for scale in self.scales:
            if _cut_off(few, scale):
                continue
            tried = scaled(few, scale)
            supports = segmenter.encode(tried.support.image[tried.support_slices])
            scores[scale] = _score(tried, segmenter, replace(encoded, supports=supports))
        best = max(scores, key=lambda scale: scores[scale])
        if scores[best] > scores[1.0] + self.margin:
            self.found = best
            log.info("%s: support at %g times its size", episode.query.id, best)
        return scaled(episode, self.found)


def _score(episode: Episode, segmenter: Segmenter, encoded: EncodedEpisode) -> float:
    """How sure the model is, in [0, 1]: mean of the predicted overlap and of the probability of the
    masks' pixels, of the better half of each organ's slices, since some may lack the organ."""
    answers = single_support(segmenter, episode, encoded).values()
    sure = [_better_half(a.iou * a.present) + _better_half(a.certainty) for a in answers]
    return float(np.mean(sure)) / 2


def _better_half(values: np.ndarray) -> float:
    return float(np.sort(values)[len(values) // 2 :].mean())


def _cut_off(episode: Episode, scale: float) -> bool:
    """Whether a support enlarged about its middle would lose half of an organ, or more, beyond its
    edges."""
    height, width = episode.support.image.shape[1:]
    rows, columns = (abs(np.arange(n) + 0.5 - n / 2) < n / 2 / scale for n in (height, width))
    return any(
        2 * mask[np.ix_(rows, columns)].sum() <= mask.sum()
        for task in episode.organs.values()
        for mask in task.support_masks
    )


def scaled(episode: Episode, scale: float) -> Episode:
    """The episode with all support slices enlarged about their centres, as though the support's
    spacing were this much larger than its header says."""
    if scale == 1:
        return episode
    slices, height, width = episode.support.image.shape
    middle = np.tile([height / 2, width / 2], (slices, 1))
    crops = Crops(middle, np.array([height, width]) / scale, (height, width))
    organs = {}
    for organ, task in episode.organs.items():
        masks = crops[task.support_slices].cut_masks(task.support_masks, crops.shape)
        organs[organ] = replace(task, support_masks=masks)
    image = crops.cut(episode.support.image, crops.shape)
    support = replace(episode.support, id=f"{episode.support.id} x{scale:g}", image=image)
    return replace(episode, support=support, organs=organs)


def some_slices(episode: Episode, count: int) -> Episode:
    """The episode asking for ``count`` slices of each organ, spread over its task."""
    rows = {}
    for organ, task in episode.organs.items():
        spread = np.linspace(0, len(task.query_slices) - 1, count + 2).round().astype(int)
        spread = np.unique(spread)
        rows[organ] = spread[1:-1] if len(spread) > 2 else spread
    return episode.asking(rows)


EVEN = 1e-3  # range of intensities that shows nothing


def body_box(volume: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the body in slices ``[S, H, W]``, as shares of their sides.

    Fields of view differ more than bodies do. What is brighter in any slice than half of Otsu's
    threshold belongs to the body, air does not.
    """
    brightest = volume.max(axis=0)
    if np.ptp(brightest) < EVEN:
        return 0.0, 0.0, 1.0, 1.0
    body = brightest > threshold_otsu(brightest) / 2
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    height, width = body.shape
    left, right = columns[0] / width, (columns[-1] + 1) / width
    return left, rows[0] / height, right, (rows[-1] + 1) / height


def place_in_body(episode: Episode, labelled: np.ndarray) -> np.ndarray:
    """Where something labelled in the support is expected in the query's slices: (y, x) in pixels,
    the middle of its masks ``[P, H, W]``, carried from body to body (see ``body_box``)."""
    shape = np.array(labelled.shape[1:])
    middle = (np.argwhere(labelled.any(axis=0)).mean(axis=0) + 0.5) / shape
    for volume, back in ((episode.support.image, False), (episode.query.image, True)):
        left, top, right, bottom = body_box(volume)
        corner, size = np.array([top, left]), np.array([bottom - top, right - left])
        middle = corner + middle * size if back else (middle - corner) / size
    return middle * episode.query.image.shape[1:]


def descriptors(features: Features, box: tuple[float, float, float, float]) -> np.ndarray:
    """What tells slices apart: features of the coarsest level averaged over a grid in the body's
    box (see ``body_box``), ``[B, D]``."""
    from torchvision.ops import roi_align  # slow to load, and not always used

    maps = features.levels[-1].float()
    height, width = maps.shape[-2:]
    corners = maps.new_tensor(box) * maps.new_tensor([width, height, width, height])
    boxes = [corners[None]] * len(maps)
    return roi_align(maps, boxes, GRID, 1.0, SAMPLES, aligned=True).flatten(1).cpu().numpy()


def place_support(
    segmenter: Segmenter, episode: Episode, query: Iterable[Features]
) -> np.ndarray | None:
    """:func:`places` of an episode, whose support is encoded whole; None where the support's slices
    do not follow one another.

    Args:
        segmenter: encodes the support.
        episode: its query slices follow one another.
        query: features of all query slices, in portions.
    """
    if not np.isfinite(episode.support.spacing[0]):
        return None
    supports, queries = episode.support.image, episode.query.image[episode.query_slices]
    encoded = map(segmenter.encode, batches(supports, segmenter.batch_size))
    of_support, of_query = (
        np.concatenate([descriptors(some, box) for some in portions])
        for portions, box in ((encoded, body_box(supports)), (query, body_box(queries)))
    )
    return places(of_support, of_query, episode.support.spacing[0] / episode.query.spacing[0])


def places(support: np.ndarray, query: np.ndarray, ratio: float) -> np.ndarray | None:
    """Position of every support slice in the query, float ``[S]``, maybe beyond its ends.

    Whole slices are compared, not the organ: neighbouring organs and the outline of the body tell
    the height, also where the organ itself is not found.

    The stretch and the shift are taken for which slices at the same place are most alike: the mean
    cosine of their descriptors, from which the mean of their volume was subtracted.

    Args:
        support: :func:`descriptors` ``[S, D]`` of all slices of the support.
        query: the same ``[Q, D]`` of the query.
        ratio: slice distance of the support over that of the query.

    Returns:
        None where a volume is too short to be placed.
    """
    if min(len(support), len(query)) < FEWEST:
        return None
    # without its own mean, a volume says what changes along it, and not whose body it is
    of_support, of_query = (torch.as_tensor(all_ - all_.mean(axis=0)) for all_ in (support, query))
    alike = torch.cosine_similarity(of_support[:, None], of_query[None], dim=2).numpy()
    rows = np.arange(len(support))
    best, found = -np.inf, None
    for stretch in STRETCHES:
        slope = ratio * stretch
        fewest = max(FEWEST, OVERLAP * min(len(support), len(query) / slope))
        for shift in np.arange(-slope * len(support), len(query), STEP):
            at = slope * rows + shift
            inside = (at >= 0) & (at <= len(query) - 1)
            if inside.sum() < fewest:
                continue
            below = np.minimum(at[inside].astype(int), len(query) - 2)
            part = at[inside] - below
            there = rows[inside]
            cosine = (1 - part) * alike[there, below] + part * alike[there, below + 1]
            score = cosine.mean() - DOUBT * cosine.std() / np.sqrt(len(cosine))
            if score > best:
                best, found = score, at
    return found
