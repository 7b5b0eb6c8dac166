"""Synapse multi-atlas abdomen CT: ``python -m data_prep.synapse --raw DIR_OR_ZIP --out DIR``.

``img/img0001.nii.gz`` and ``label/label0001.nii.gz`` of ``RawData/Training``, at any depth, turned
to the orientation of all prepared scans.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from data_prep.geometry import resample, resample_label, rescaled, shifted
from data_prep.nifti_pairs import complete_pair, find_pairs, refuse_constant, refuse_unknown
from data_prep.source import PreparedScan, Source
from fsmis.data.expectation import CT_RANGE
from fsmis.data.geometry import AxialVolume
from fsmis.data.nifti import read_pair
from fsmis.errors import UserError

IMAGE = re.compile(r"img(\d{4})\.nii(?:\.gz)?")
LABEL = re.compile(r"label(\d{4})\.nii(?:\.gz)?")
RIGHT_FILE = "get Abdomen/RawData/RawData.zip (syn3193805): RegData and averaged-* have no kidneys"


class Synapse(Source):
    """The training scans of ``Abdomen/RawData/RawData.zip``."""

    def __init__(
        self,
        label_ids: Sequence[int],
        kidney_ids: Sequence[int],
        window: Sequence[float],
        air_hu: float,
        margin: float,
        size: int,
        geometry_mm: float,
        label_tolerance: float,
        **common: Any,
    ) -> None:
        super().__init__(
            **common,
            label_ids=label_ids,
            kidney_ids=kidney_ids,
            window=window,
            air_hu=air_hu,
            margin=margin,
            size=size,
            geometry_mm=geometry_mm,
            label_tolerance=label_tolerance,
        )

    def wanted(self, member: PurePosixPath) -> bool:
        return bool(IMAGE.fullmatch(member.name) or LABEL.fullmatch(member.name))

    def find(self, root: Path) -> dict[str, tuple[Path, ...]]:
        pairs = find_pairs(root, IMAGE, LABEL)
        if not pairs:
            raise UserError(f"no img/img0001.nii.gz and label/label0001.nii.gz in it; {RIGHT_FILE}")
        return pairs

    def prepare(self, files: Sequence[Path]) -> PreparedScan:
        image_path, label_path = complete_pair(files, LABEL)
        image, label, _, affine = read_pair(
            image_path,
            label_path,
            geometry_mm=self.settings["geometry_mm"],
            label_tolerance=self.settings["label_tolerance"],
        )
        self._check(image_path, image, label_path, label)
        turned = AxialVolume.turn(image.astype(np.float32), affine)
        image, label, affine = turned.pixels, AxialVolume.turn(label, affine).pixels, turned.affine
        image = np.interp(image, self.settings["window"], CT_RANGE)
        rows, columns = (int(n * self.settings["margin"]) for n in image.shape[1:])
        cut = np.s_[:, rows : image.shape[1] - rows, columns : image.shape[2] - columns]
        image, label, affine = image[cut], label[cut], shifted(affine, rows, columns)

        size = self.settings["size"]
        old = voxel_sizes(affine)[::-1]
        new = old * [1, image.shape[1] / size, image.shape[2] / size]
        shape = (len(image), size, size)
        return PreparedScan(
            resample(image, old, new, shape, outside=0),
            resample_label(label, old, new, shape),
            rescaled(affine, old, new),
        )

    def _check(
        self, image_path: Path, image: np.ndarray, label_path: Path, label: np.ndarray
    ) -> None:
        refuse_constant(image_path, image)
        _, high = self.settings["window"]
        if image.min() > self.settings["air_hu"] or image.max() < high:
            raise UserError(
                f"{image_path}: values from {image.min():g} to {image.max():g} are not the "
                "Hounsfield units of a raw CT (windowed before, or without its rescale intercept); "
                "use the file as downloaded"
            )
        refuse_unknown(label_path, label, self.settings["label_ids"])
        if not np.isin(label, self.settings["kidney_ids"]).any():
            raise UserError(f"{label_path}: no kidney is labelled; {RIGHT_FILE}")


if __name__ == "__main__":
    from data_prep.cli import main

    main("synapse")
