"""What a reader of results should know of a volume's grey values: one line each."""

import numpy as np

FLAT = 0.98  # share of voxels of one value from which a volume counts as nearly constant


def notes_on(name: str, pixels: np.ndarray) -> list[str]:
    """Remarks on a volume ``[Z, H, W]`` that is constant, nearly so, or has empty slices.

    Empty slices hold one value: padding, or where a scanner wrote nothing.
    """
    if pixels.min() == pixels.max():
        return [f"{name}: every voxel has the value {pixels.flat[0]:g}; nothing can be found in it"]
    remarks = []
    usual = np.partition(pixels, pixels.size // 2, axis=None)[pixels.size // 2]
    share = np.count_nonzero(pixels == usual) / pixels.size
    if share >= FLAT:  # above one half, the usual value can be no other
        remarks.append(
            f"{name}: nearly constant, {100 * share:.1f} % of its voxels have the value {usual:g}"
        )
    flat = pixels.reshape(len(pixels), -1)
    empty = np.flatnonzero(flat.min(axis=1) == flat.max(axis=1))
    if len(empty):
        remarks.append(f"{name}: {len(empty)} of {len(pixels)} slices are empty, of one value each")
    return remarks
