"""The largest connected part of an organ in the volume."""

import numpy as np
from scipy.ndimage import generate_binary_structure, label

TOUCHING = generate_binary_structure(3, 3)  # voxels that share a corner: 26 neighbours


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest part of a mask bool ``[S, H, W]``; of equal ones the first, of none none.

    Slices that follow one another in the stack touch, even where the protocol leaves out slices
    between them: such a gap does not cut an organ in two.
    """
    parts, _ = label(mask, TOUCHING)
    sizes = np.bincount(parts.ravel(), minlength=1)
    sizes[0] = 0  # background
    return mask & (parts == sizes.argmax())
