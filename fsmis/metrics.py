"""Scores of one organ in one scan: Dice, IoU and surface distances, all through medpy."""

import numpy as np
from medpy.metric.binary import assd, dc, hd95, jc

Score = dict[str, int | float | None]


def score(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float]) -> Score:
    """Compare two masks over the stack of the scored slices.

    Slices are taken as neighbours at ``spacing[0]`` in the order given: where the organ vanishes in
    between and the protocol leaves those slices out, distances close that gap.

    An empty prediction of an organ that is there, and the reverse, have overlap 0 and no distance
    (None). Two empty masks agree: overlap 1, distance None; no protocol asks for them, because an
    organ that a scan lacks is skipped.

    Args:
        prediction: bool [S, H, W].
        truth: bool [S, H, W].
        spacing: voxel size in mm (z, y, x).

    Returns:
        ``n_slices``, ``tp``, ``fp``, ``fn`` (voxels), ``dice`` and ``iou`` in [0, 1], ``hd95_mm``
        (95th percentile of the surface distances of both directions together) and ``assd_mm``
        (average symmetric surface distance: the mean over both surfaces together), as named in
        scores.csv.

    Raises:
        ValueError: the masks are not bool arrays of the same shape [S, H, W].
    """
    for mask in (prediction, truth):
        if mask.dtype != bool or mask.ndim != 3 or mask.shape != truth.shape:
            raise ValueError(
                f"masks must be bool [S, H, W] of one shape, not {prediction.dtype} "
                f"{prediction.shape} and {truth.dtype} {truth.shape}"
            )
    counts: Score = {
        "n_slices": len(truth),
        "tp": int((prediction & truth).sum()),
        "fp": int((prediction & ~truth).sum()),
        "fn": int((~prediction & truth).sum()),
    }
    if not prediction.any() or not truth.any():
        agreement = float(prediction.any() == truth.any())
        return counts | {"dice": agreement, "iou": agreement, "hd95_mm": None, "assd_mm": None}
    # outside the box around both masks there is nothing to measure, and medpy's time grows with it
    box = _bounding_box(prediction | truth)
    prediction, truth = prediction[box], truth[box]
    return counts | {
        "dice": float(dc(prediction, truth)),
        "iou": float(jc(prediction, truth)),
        "hd95_mm": float(hd95(prediction, truth, voxelspacing=spacing)),
        "assd_mm": float(assd(prediction, truth, voxelspacing=spacing)),
    }


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Slices of the smallest box that holds a mask that is not empty."""
    return tuple(slice(index.min(), index.max() + 1) for index in np.nonzero(mask))
