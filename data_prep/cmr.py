"""MS-CMRSeg 2019, bSSFP: ``python -m data_prep.cmr --raw DIR_OR_ZIP --out DIR``.

``patient<N>_C0.nii.gz`` and ``patient<N>_C0_manual.nii.gz``, at any depth. The protocol keeps
slices as stored: short axes are oblique, so no axis of the patient is nearest to them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from data_prep.mr import resampled_to_protocol
from data_prep.nifti_pairs import complete_pair, find_pairs, refuse_constant, refuse_unknown
from data_prep.source import PreparedScan, Source
from fsmis.data.nifti import read_pair
from fsmis.errors import UserError

IMAGE = re.compile(r"patient(\d+)_C0\.nii(?:\.gz)?")
LABEL = re.compile(r"patient(\d+)_C0_manual\.nii(?:\.gz)?")


class Cmr(Source):
    """The bSSFP scans of the challenge, without its other sequences."""

    def __init__(
        self,
        label_values: Mapping[int, int],
        geometry_mm: float,
        label_tolerance: float,
        spacing: Sequence[float],
        size: int,
        clip_percentile: float,
        **common: Any,
    ) -> None:
        super().__init__(
            **common,
            label_values=label_values,
            geometry_mm=geometry_mm,
            label_tolerance=label_tolerance,
            spacing=spacing,
            size=size,
            clip_percentile=clip_percentile,
        )

    def wanted(self, member: PurePosixPath) -> bool:
        return bool(IMAGE.fullmatch(member.name) or LABEL.fullmatch(member.name))

    def find(self, root: Path) -> dict[str, tuple[Path, ...]]:
        pairs = find_pairs(root, IMAGE, LABEL)
        if not pairs:
            raise UserError(
                "no patient<N>_C0.nii.gz with patient<N>_C0_manual.nii.gz in it; get the bSSFP "
                "(C0) scans of MS-CMRSeg 2019"
            )
        return pairs

    def prepare(self, files: Sequence[Path]) -> PreparedScan:
        image_path, label_path = complete_pair(files, LABEL)
        image, raw_label, _, affine = read_pair(
            image_path,
            label_path,
            geometry_mm=self.settings["geometry_mm"],
            label_tolerance=self.settings["label_tolerance"],
        )
        refuse_constant(image_path, image)
        x, y, z = voxel_sizes(affine)
        if z < max(x, y):
            raise UserError(
                f"{image_path}: voxels of {x:.2f} x {y:.2f} x {z:.2f} mm, so its third axis is not "
                "that of the slices; use the file as downloaded"
            )
        values = {int(raw): value for raw, value in self.settings["label_values"].items()}
        refuse_unknown(label_path, raw_label, list(values))
        label = np.zeros(raw_label.shape, np.uint8)
        for raw, value in values.items():
            label[raw_label == raw] = value
        return resampled_to_protocol(
            image,
            label,
            affine,
            spacing=self.settings["spacing"],
            size=self.settings["size"],
            clip_percentile=self.settings["clip_percentile"],
        )


if __name__ == "__main__":
    from data_prep.cli import main

    main("cmr")
