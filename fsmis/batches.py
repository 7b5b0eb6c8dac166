"""Rows in portions that fit into memory."""

import numpy as np


def batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows along the first axis, ``size`` at a time; the last portion may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
