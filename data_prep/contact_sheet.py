"""All scans at a glance: does every label lie on its organ?"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from fsmis.data.nifti import read_volume
from fsmis.files import write_figure
from fsmis.reporting.figures import outline, show

COLUMNS = 7  # most scans in a row
INCHES = 2.0  # side of a scan


def draw_contact_sheet(path: Path, folder: Path, scan_ids: Sequence[str]) -> None:
    """Draw, to a ``.png``, the slice with most label pixels of every scan, each label outlined."""
    columns = min(COLUMNS, len(scan_ids))
    rows = math.ceil(len(scan_ids) / columns)
    figure = Figure(figsize=(INCHES * columns, (INCHES + 0.25) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, scan_id in zip(axes, scan_ids, strict=False):
        image, _, _ = read_volume(folder / f"image_{scan_id}.nii.gz")
        label, _, _ = read_volume(folder / f"label_{scan_id}.nii.gz")
        z = int(np.argmax((label > 0).sum(axis=(1, 2))))
        show(axis, image[z], scaled=False)
        for value in np.unique(label[z])[1:]:
            colour = colormaps["tab20"](int(value) % 20)
            outline(axis, label[z] == value, colour, width=0.8)
        axis.set_title(f"{scan_id}, slice {z}", fontsize=7)
    write_figure(path, figure)
