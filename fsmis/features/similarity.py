"""Where a slice looks like a labelled organ, and the points or boxes that ask SAM for it.

After PerSAM (Zhang et al., "Personalize Segment Anything Model with One Shot", ICLR 2024, arXiv
2305.03048). Points and boxes are (x, y) in pixels, with SAM's labels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import label
from torch import Tensor

from fsmis.features.prototypes import cosine_logits, masked_average
from fsmis.segmenters.point_labels import BACKGROUND, FOREGROUND, LOWER_RIGHT, UPPER_LEFT


def similarity(support: Tensor, foreground: Tensor, query: Tensor, side: int) -> Tensor:
    """Cosine ``[B, side, side]`` of query features to the mean feature of the organ.

    Args:
        support: features ``[B, C, h, w]`` of labelled images.
        foreground: weights ``[B, h, w]`` in [0, 1] on them.
        query: features ``[B, C, h, w]``.
        side: pixels of the map, to which it is interpolated.
    """
    organ = masked_average(support, foreground)[:, None]
    cosine = cosine_logits(query, organ, scale=1.0)[:, None]
    return F.interpolate(cosine, (side, side), mode="bilinear", align_corners=False)[:, 0]


def extreme_points(maps: Tensor) -> tuple[Tensor, Tensor]:
    """A foreground point where maps ``[B, h, w]`` are highest, a background point where lowest.

    Returns:
        coordinates float32 ``[B, 2, 2]`` and labels int32 ``[B, 2]``.
    """
    flat = maps.flatten(1)
    places = torch.stack([flat.argmax(1), flat.argmin(1)], 1)
    width = maps.shape[2]
    coordinates = torch.stack([places % width, places // width], 2).float()
    return coordinates, _labels(FOREGROUND, BACKGROUND, like=maps)


def box_around_peak(maps: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The box of the connected region around the highest point of maps ``[B, h, w]``.

    Args:
        maps: similarities.
        threshold: the region is where a map is at least this far from its lowest value (0) to its
            highest (1).

    Returns:
        As :func:`extreme_points`: the upper left and the lower right corner of each box.
    """
    regions = []
    for values in maps.float().cpu().numpy():
        region, _ = label(values >= values.min() + threshold * np.ptp(values))
        regions.append(region == region.flat[values.argmax()])
    return box_of_masks(torch.from_numpy(np.stack(regions)).to(maps.device))


def box_of_masks(masks: Tensor) -> tuple[Tensor, Tensor]:
    """The box of masks bool ``[B, h, w]``, none of them empty; as :func:`box_around_peak`."""
    corners = np.stack([_corners(mask) for mask in masks.cpu().numpy()])
    coordinates = torch.tensor(corners, dtype=torch.float32, device=masks.device)
    return coordinates, _labels(UPPER_LEFT, LOWER_RIGHT, like=masks)


def _corners(mask: np.ndarray) -> np.ndarray:
    """(x, y) where a mask begins and ends, int ``[2, 2]``."""
    rows, columns = np.nonzero(mask)
    return np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])


def _labels(*pair: int, like: Tensor) -> Tensor:
    return torch.tensor(pair, dtype=torch.int32, device=like.device).expand(len(like), 2)
