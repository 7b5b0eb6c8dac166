"""A folder of NIfTI pairs of your own: ``python -m data_prep.folder --raw DIR_OR_ZIP --out DIR``.

Known names, at any depth: ``image_<id>`` with ``label_<id>``, and ``imagesTr/<id>`` with
``labelsTr/<id>`` (Medical Segmentation Decathlon; nnU-Net, whose images are ``<id>_0000``), each
``.nii`` or ``.nii.gz``.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from data_prep.geometry import crop_or_pad, resample, resample_label, rescaled
from data_prep.nifti_pairs import nifti_files, refuse_constant
from data_prep.source import PreparedScan, Source
from fsmis.data.dataset import MOST_LABELS, scan_id_of
from fsmis.data.expectation import CT_RANGE
from fsmis.data.geometry import AxialVolume
from fsmis.data.nifti import read_pair
from fsmis.errors import UserError

NIFTI = re.compile(r"(.+)\.nii(?:\.gz)?")
CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's
PREFIXES = {"image_": "image", "label_": "label"}
IMAGES = "imagesTr"
FOLDERS = {IMAGES: "image", "labelsTr": "label"}
ORIENTATIONS = ("axial", "stored")
LAYOUTS = "image_<id>.nii.gz with label_<id>.nii.gz, or imagesTr/<id>.nii.gz with labelsTr/"


class Folder(Source):
    """Images and labels of any geometry, brought to square slices of one size."""

    def __init__(
        self,
        channel: int,
        orientation: str,
        spacing: Sequence[float] | None,
        size: int,
        window: Sequence[float] | None,
        clip_percentile: float,
        geometry_mm: float,
        label_tolerance: float,
        **common: Any,
    ) -> None:
        if orientation not in ORIENTATIONS:
            raise UserError(f"orientation={orientation}: choose {' or '.join(ORIENTATIONS)}")
        if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
            raise UserError(f"spacing={spacing}: give three sizes in mm (z, y, x), or null")
        if window is not None and (len(window) != 2 or not window[0] < window[1]):
            raise UserError(f"window={window}: give two values, the lower one first, or null")
        if size < 1 or not 0 < clip_percentile <= 100:
            raise UserError(
                f"size={size}, clip_percentile={clip_percentile}: choose 1 or more, and above 0 up "
                "to 100"
            )
        super().__init__(
            **common,
            channel=channel,
            orientation=orientation,
            spacing=spacing,
            size=size,
            window=window,
            clip_percentile=clip_percentile,
            geometry_mm=geometry_mm,
            label_tolerance=label_tolerance,
        )

    def wanted(self, member: PurePosixPath) -> bool:
        return _role(member) is not None

    def find(self, root: Path) -> dict[str, tuple[Path, ...]]:
        found: dict[str, dict[str, Path]] = {}
        paths = {path: _role(path.relative_to(root)) for path in nifti_files(root)}
        roles = {path: role for path, role in paths.items() if role is not None}
        labelled = {name for kind, name in roles.values() if kind == "label"}
        for path, (kind, name) in roles.items():
            channel = CHANNEL.fullmatch(name) if path.parent.name == IMAGES else None
            if channel and name not in labelled:  # amos_0001 has a label of that name
                if int(channel[2]) != self.settings["channel"]:
                    continue
                name = channel[1]
            pair = found.setdefault(scan_id_of(path, name), {})
            if pair.setdefault(kind, path) != path:
                raise UserError(f"{path}: the same scan as {pair[kind]}; remove one of them")
        if not found:
            raise UserError(f"no {LAYOUTS} in it; rename the files so")
        return {i: tuple(pair[kind] for kind in sorted(pair)) for i, pair in found.items()}

    def prepare(self, files: Sequence[Path]) -> PreparedScan:
        settings = self.settings
        if len(files) != 2:
            raise UserError(f"{files[0]}: its image or label is not there; expected {LAYOUTS}")
        image_path, label_path = files
        image, label, _, affine = read_pair(
            image_path,
            label_path,
            geometry_mm=settings["geometry_mm"],
            label_tolerance=settings["label_tolerance"],
        )
        refuse_constant(image_path, image)
        if not label.any() or label.min() < 0 or label.max() > MOST_LABELS:
            raise UserError(
                f"{label_path}: label values {label.min()} to {label.max()}; label something, and "
                f"use values from 0 to {MOST_LABELS}"
            )
        if settings["window"] is not None:
            image = np.interp(image, settings["window"], CT_RANGE)
        else:
            image = np.minimum(image, np.percentile(image, settings["clip_percentile"]))
        if settings["orientation"] == "axial":
            turned = AxialVolume.turn(image, affine)
            label = AxialVolume.turn(label, affine).pixels
            image, affine = turned.pixels, turned.affine
        size, old = settings["size"], voxel_sizes(affine)[::-1]
        pixel = max(np.multiply(image.shape[1:], old[1:])) / size
        new = settings["spacing"] or [float(old[0]), pixel, pixel]
        shape = [max(1, round(n * a / b)) for n, a, b in zip(image.shape, old, new, strict=True)]
        darkest = float(image.min())
        image = resample(image, old, new, shape, outside=darkest)
        resampled = resample_label(label, old, new, shape)
        affine = rescaled(affine, old, new)
        pixels, cropped = crop_or_pad(image, affine, size, outside=darkest)
        labels, _ = crop_or_pad(resampled, affine, size, outside=0)
        if not labels.any():
            raise UserError(
                f"{label_path}: nothing of the labels is left; choose another spacing or size"
            )
        return PreparedScan(pixels, labels, cropped, {"losses": _losses(label, resampled, labels)})


def _losses(raw: np.ndarray, resampled: np.ndarray, cropped: np.ndarray) -> list[str]:
    """What a scan's preparation took from its labels, each with what to do."""
    losses = []
    for value in np.unique(raw[raw > 0]).tolist():
        whole, kept = (int((label == value).sum()) for label in (resampled, cropped))
        if whole == 0:
            losses.append(
                f"label {value} is too small for the prepared grid; choose a finer spacing"
            )
        elif percent := round(100 * (whole - kept) / whole):
            losses.append(
                f"{percent} % of label {value} lies outside the prepared slices; choose a larger "
                "size or spacing"
            )
    return losses


def _role(path: PurePath) -> tuple[str, str] | None:
    """``image`` or ``label``, by its folder or else by its name, and the name without that."""
    match = NIFTI.fullmatch(path.name)
    if match is None or path.name.startswith("."):  # macOS leaves such files
        return None
    prefix = next((prefix for prefix in PREFIXES if match[1].startswith(prefix)), "")
    kind = FOLDERS.get(path.parent.name) or PREFIXES.get(prefix)
    return (kind, match[1].removeprefix(prefix)) if kind else None


if __name__ == "__main__":
    from data_prep.cli import main

    main("folder")
