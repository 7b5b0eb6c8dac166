"""The protocol's geometry and intensities for MR, abdomen and heart alike."""

from collections.abc import Sequence

import numpy as np
from nibabel.affines import voxel_sizes

from data_prep.geometry import crop_or_pad, grid_size, resample, resample_label, rescaled
from data_prep.source import PreparedScan


def resampled_to_protocol(
    image: np.ndarray,
    label: np.ndarray,
    affine: np.ndarray,
    *,
    spacing: Sequence[float],
    size: int,
    clip_percentile: float,
) -> PreparedScan:
    """Clip an MR volume's bright end, resample it, and cut or pad its slices.

    ``image`` and ``label`` are [Z, H, W], ``affine`` [4, 4] maps their voxels (x, y, z) to mm.
    ``spacing`` (mm; z, y, x) and ``size`` are the target; above ``clip_percentile`` all is equally
    bright.
    """
    image = np.minimum(image, np.percentile(image, clip_percentile)).astype(np.float32)
    darkest = float(image.min())
    old = voxel_sizes(affine)[::-1]
    shape = grid_size(image.shape, old, spacing)
    resampled = rescaled(affine, old, spacing)
    pixels, cropped = crop_or_pad(
        resample(image, old, spacing, shape, outside=darkest), resampled, size, outside=darkest
    )
    labels, _ = crop_or_pad(resample_label(label, old, spacing, shape), resampled, size, outside=0)
    return PreparedScan(pixels, labels, cropped)
