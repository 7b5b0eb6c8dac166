"""CHAOS, T2-SPIR: ``python -m data_prep.chaos --raw DIR_OR_ZIP --out DIR``.

DICOM series and PNG labels of ``Train_Sets/MR/<id>/T2SPIR/{DICOM_anon,Ground}``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.mr import resampled_to_protocol
from data_prep.nifti_pairs import refuse_constant
from data_prep.source import PreparedScan, Source
from fsmis.data.dicom import read_series
from fsmis.data.expectation import in_plane_gradient, outline_contrast
from fsmis.data.geometry import AxialVolume
from fsmis.errors import UserError
from fsmis.files import walked

SERIES, DICOM, GROUND = "T2SPIR", "DICOM_anon", "Ground"


class Chaos(Source):
    """The MR part of ``CHAOS_Train_Sets.zip``."""

    def __init__(
        self,
        grey_values: Mapping[int, Sequence[int]],
        gap_tolerance: float,
        outline_margin: float,
        spacing: Sequence[float],
        size: int,
        clip_percentile: float,
        **common: Any,
    ) -> None:
        super().__init__(
            **common,
            grey_values=grey_values,
            gap_tolerance=gap_tolerance,
            outline_margin=outline_margin,
            spacing=spacing,
            size=size,
            clip_percentile=clip_percentile,
        )

    def wanted(self, member: PurePosixPath) -> bool:
        return SERIES in member.parts and not member.name.startswith(".")

    def find(self, root: Path) -> dict[str, tuple[Path, ...]]:
        folders: dict[str, Path] = {}
        for folder in (folder for folder, _ in walked(root) if folder.name == SERIES):
            name = folder.parent.name
            if not name.isdecimal() or not _files(folder):  # macOS leaves such folders
                continue
            scan_id = str(int(name))
            if scan_id in folders:
                raise UserError(
                    f"{folder}: scan {scan_id} is there twice, also in {folders[scan_id]}; "
                    "give the folder of the training sets alone"
                )
            folders[scan_id] = folder
        if not folders:
            raise UserError(
                f"no Train_Sets/MR/<id>/{SERIES} with {DICOM} and {GROUND} in it; get "
                "CHAOS_Train_Sets.zip (`make data-chaos`) and give the zip or the unpacked folder"
            )
        if not any((folder / GROUND).is_dir() for folder in folders.values()):
            raise UserError(
                f"no scan has a folder {GROUND} with labels; this may be CHAOS_Test_Sets, get "
                "CHAOS_Train_Sets.zip"
            )
        return {scan_id: _files(folder) for scan_id, folder in folders.items()}

    def prepare(self, files: Sequence[Path]) -> PreparedScan:
        grounds = {path.stem: path for path in files if path.parent.name == GROUND}
        slices = [path for path in files if path.parent.name == DICOM]
        if not slices or not grounds:
            present, absent = (GROUND, DICOM) if grounds else (DICOM, GROUND)
            raise UserError(
                f"{files[0].parent.parent}: no files in {absent}, only in {present}; download again"
            )
        pixels, affine, paths = read_series(slices, self.settings["gap_tolerance"])
        refuse_constant(paths[0].parent, pixels)
        orphans = grounds.keys() - {path.stem for path in paths}
        if orphans:
            orphan = grounds[min(orphans)]
            raise UserError(f"{orphan}: there is no slice {orphan.stem} in {DICOM}; download again")
        label = np.stack([self._read_ground(path, grounds, pixels.shape[1:]) for path in paths])
        label, flipped = self._lay_on_tissue(label, pixels, files[0].parent.parent)

        image = AxialVolume.turn(pixels, affine)
        turned = AxialVolume.turn(label, affine)
        scan = resampled_to_protocol(
            image.pixels,
            turned.pixels,
            image.affine,
            spacing=self.settings["spacing"],
            size=self.settings["size"],
            clip_percentile=self.settings["clip_percentile"],
        )
        return replace(scan, notes={"label_rows_flipped": flipped})

    def _read_ground(
        self, slice_path: Path, grounds: Mapping[str, Path], shape: tuple[int, ...]
    ) -> np.ndarray:
        path = grounds.get(slice_path.stem)
        if path is None:
            raise UserError(
                f"{slice_path}: no {slice_path.stem}.png in {GROUND}; download the labels again"
            )
        try:
            with Image.open(path) as png:
                mode, grey = png.mode, np.asarray(png)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(f"{path}: not a whole PNG file; download it again") from error
        if mode != "L" or grey.shape != shape:
            raise UserError(
                f"{path}: {grey.shape} pixels of mode {mode}, its slice has {shape}; expected "
                "8-bit grey values of the same size, download it again"
            )
        ranges: dict[str, list[int]] = self.settings["grey_values"]
        label = np.zeros(grey.shape, np.uint8)
        for value, (low, high) in ranges.items():
            label[(grey >= low) & (grey <= high)] = int(value)
        unknown = grey[(grey > 0) & (label == 0)]
        if unknown.size:
            known = ", ".join(f"{low}-{high}" for low, high in ranges.values())
            raise UserError(
                f"{path}: grey value {unknown[0]} belongs to no organ (0, {known}); the file was "
                "edited or is of another dataset, download it again"
            )
        return label

    def _lay_on_tissue(
        self, label: np.ndarray, pixels: np.ndarray, folder: Path
    ) -> tuple[np.ndarray, bool]:
        """Labels [Z, H, W] on the raster of the image, and whether their rows had to be flipped.

        PNG files carry no orientation, and those of CHAOS are described as flipped along the rows;
        so the image decides: outlines of the right label lie on its edges.
        """
        if not label.any():
            raise UserError(f"{folder / GROUND}: all PNG files are empty; download them again")
        margin = self.settings["outline_margin"]
        ceiling = np.percentile(pixels, self.settings["clip_percentile"])
        gradient = in_plane_gradient(np.minimum(pixels, ceiling))
        candidates = [(label, False), (np.flip(label, axis=1), True)]
        fits = [outline_contrast(gradient, candidate) for candidate, _ in candidates]
        best = int(np.argmax(fits))
        if fits[best] < margin * max(1, fits[1 - best]):
            raise UserError(
                f"{folder}: the labels lie on no organ, neither as stored (outline contrast "
                f"{fits[0]:.2f}) nor with rows flipped ({fits[1]:.2f}); image and labels may be of "
                "different scans"
            )
        return candidates[best]


def _files(folder: Path) -> tuple[Path, ...]:
    """All files of a scan, without what macOS and Windows leave behind."""
    kinds = {DICOM: ".dcm", GROUND: ".png"}
    return tuple(
        path
        for name, suffix in kinds.items()
        for below, files in walked(folder / name)
        for path in map(below.joinpath, files)
        if path.suffix.lower() == suffix and not path.name.startswith(".")
    )


if __name__ == "__main__":
    from data_prep.cli import main

    main("chaos")
