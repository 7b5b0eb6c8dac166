"""The steps from labelled slices to masks, a file each; here, what they tell of a query slice."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Match:
    """What a query slice was segmented from: an image float32 [H, W] in [0, 1] and its mask bool
    [H, W]; it is the nearest of ``of`` such pairs that prompted the slice together."""

    image: np.ndarray
    mask: np.ndarray
    of: int = 1
