"""What a reader of results should know of a volume's grey values: one line each."""

import numpy as np

FLAT = 0.98  # share of voxels of one value from which a volume counts as nearly constant


def notes_on(name: str, pixels: np.ndarray) -> list[str]:
    """Remarks on a volume ``[Z, H, W]`` that is constant, nearly so, or has empty slices.

    Empty slices hold one value: padding, or where a scanner wrote nothing.
    """
    if pixels.min() == pixels.max():
        return [f"{name}: every voxel has the value {pixels.flat[0]:g}; nothing can be found in it"]
    values, counts = np.unique(pixels, return_counts=True)
    remarks = []
    if counts.max() >= FLAT * pixels.size:
        share = 100 * counts.max() / pixels.size
        remarks.append(
            f"{name}: nearly constant, {share:.1f} % of its voxels have the value "
            f"{values[counts.argmax()]:g}"
        )
    flat = pixels.reshape(len(pixels), -1)
    empty = np.flatnonzero(flat.min(axis=1) == flat.max(axis=1))
    if len(empty):
        remarks.append(f"{name}: {len(empty)} of {len(pixels)} slices are empty, of one value each")
    return remarks
