"""Generated patients with organs, prepared or as raw downloads, for demos and tests.

The abdomen follows the prepared CHAOS scans (row 0 posterior, liver at small columns, z grows to
the head; labels 1 liver, 2 right kidney, 3 left kidney, 4 spleen), the heart the prepared CMR scans
in short axis (labels 1 LV myocardium, 2 LV blood pool, 3 RV). Patients differ in size, in position,
shape and brightness of every tissue, in smooth deformation, noise and bias field.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from fsmis.cli import CONF_DIR, command_line
from fsmis.data.nifti import write_mask, write_volume
from fsmis.errors import UserError
from fsmis.files import write_atomic
from fsmis.tools.phantom_anatomy import ABDOMEN, CARDIAC, CT, mr_patient, paint

__all__ = ["SIZE", "generate", "write_phantom"]


SIZE = 256  # rows and columns
BRIGHTEST = 1000  # stored value of relative intensity 1
ANATOMIES = {"abdomen": ABDOMEN, "cardiac": CARDIAC}


def generate(kind: str, seed: int, scan: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One patient of kind ``abdomen`` or ``cardiac``, independent of how many others are generated.

    Returns:
        image int16 [Z, H, W], at least 0, label uint8 [Z, H, W], affine [4, 4] in (x, y, z) order.
    """
    anatomy = ANATOMIES[kind]
    magnitude, label = mr_patient(anatomy, SIZE, np.random.default_rng([seed, scan]))
    image = np.round(BRIGHTEST * magnitude).astype(np.int16)
    return image, label, anatomy.affine(SIZE)


def write_phantom(out: Path | str, kind: str = "abdomen", scans: int = 4, seed: int = 0) -> None:
    """Write ``image_<id>.nii.gz`` and ``label_<id>.nii.gz`` for the ids 1 to ``scans`` to ``out``.

    A heart is read with ``dataset=cmr dataset.root=DIR dataset.fold_starts=2``. Raises UserError
    where ``out`` cannot be written or holds anything else, or a number is too low.
    """
    if scans < 1:
        raise UserError(f"--scans={scans}: choose 1 or more (a benchmark needs 2)")
    if seed < 0:
        raise UserError(f"--seed={seed}: choose 0 or more")
    out = Path(out)
    files = [(out / f"image_{i}.nii.gz", out / f"label_{i}.nii.gz") for i in range(1, scans + 1)]
    _claim(out, kind, scans, seed)
    foreign = set(out.glob("image_*.nii*")) - {image for image, _ in files}
    if foreign:
        raise UserError(f"{min(foreign)}: not of this phantom; choose an empty folder for --out")
    for scan, (image_path, label_path) in enumerate(files, start=1):
        image, label, affine = generate(kind, seed, scan)
        write_volume(image_path, image, affine)
        write_mask(label_path, label, affine)


MARK = "phantom.json"  # beside generated scans, which may be overwritten


def _claim(out: Path, kind: str, scans: int, seed: int) -> None:
    """Make the folder and say in it that its scans are generated; UserError where it cannot be
    written or holds anything that was not."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = sorted(path for path in out.iterdir() if not path.name.startswith("."))
        if others and not (out / MARK).is_file():
            raise UserError(
                f"{others[0]}: not of a phantom, or of one of an earlier version (no {MARK} beside "
                "it); choose an empty folder for --out"
            )
        made = {"generated": kind, "scans": scans, "seed": seed}
        write_atomic(out / MARK, (json.dumps(made) + "\n").encode())
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from error


GREY = np.array([0, 63, 126, 189, 252], np.uint8)  # of label ids 0..4 in the PNG files of CHAOS
CMR_VALUES = np.array([0, 200, 500, 600], np.int16)  # of label ids 0..3 in the files of MS-CMRSeg
MR_FIELD, CT_FIELD = 360.0, 380.0  # side of the slices in mm
WINDOW = -125, 275  # HU of relative intensity 0 and 1 in CT
AIR = -1000  # HU
NOISE = 18  # HU


def write_chaos(out: Path, scan_id: str, size: int, rng: np.random.Generator) -> None:
    """Write ``CHAOS_Train_Sets/Train_Sets/MR/<id>/T2SPIR``: DICOM and PNG files of one scan."""
    anatomy = ABDOMEN.in_slices(size, MR_FIELD, rng.uniform(6, 9))
    image, label = mr_patient(anatomy, size, rng)
    folder = out / "CHAOS_Train_Sets" / "Train_Sets" / "MR" / scan_id / "T2SPIR"
    # DICOM rows grow to the back, those of the patient to the front
    pixels = np.flip(np.round(BRIGHTEST * image).astype(np.uint16), axis=1)
    z, y, x = anatomy.spacing
    for index, slice_ in enumerate(pixels):
        position = (-size * x / 2, -size * y / 2, index * z)
        path = folder / "DICOM_anon" / f"IMG-0001-{index + 1:05d}.dcm"
        write_dicom(path, slice_, position, (1, 0, 0, 0, 1, 0), (y, x))
        png = folder / "Ground" / path.with_suffix(".png").name
        png.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY[label[index]]).save(png)  # flipped against the DICOM rows


def write_synapse(out: Path, scan_id: str, size: int, rng: np.random.Generator) -> None:
    """Write ``RawData/Training/{img,label}``: the CT of one scan in Hounsfield units."""
    anatomy = CT.in_slices(size, CT_FIELD, rng.uniform(2.5, 5))
    intensity, label = paint(anatomy, (anatomy.n_slices, size, size), rng)
    low, high = WINDOW
    image = np.where(intensity == 0, AIR, low + (high - low) * intensity)
    image = np.clip(image + NOISE * rng.standard_normal(image.shape), AIR - 24, None)
    folder = out / "RawData" / "Training"
    affine = anatomy.affine(size)
    write_volume(folder / "img" / f"img{int(scan_id):04d}.nii.gz", image.astype(np.int16), affine)
    write_volume(folder / "label" / f"label{int(scan_id):04d}.nii.gz", label, affine)


def write_cmr(out: Path, scan_id: str, size: int, rng: np.random.Generator) -> None:
    """Write ``patient<N>_C0.nii.gz`` and ``patient<N>_C0_manual.nii.gz``."""
    anatomy = CARDIAC.in_slices(size, MR_FIELD, rng.uniform(8, 13))
    image, label = mr_patient(anatomy, size, rng)
    affine = anatomy.affine(size)
    pixels = np.round(BRIGHTEST * image).astype(np.int16)
    write_volume(out / f"patient{scan_id}_C0.nii.gz", pixels, affine)
    write_volume(out / f"patient{scan_id}_C0_manual.nii.gz", CMR_VALUES[label], affine)


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    position: Sequence[float],
    orientation: Sequence[float],
    spacing: Sequence[float],
) -> None:
    """Write one MR slice.

    Args:
        pixels: uint16 [H, W].
        position: of the first pixel's centre, mm (x, y, z), LPS.
        orientation: directions in which columns and rows grow, LPS.
        spacing: mm (between rows, between columns).
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    slice_.SOPClassUID = meta.MediaStorageSOPClassUID
    slice_.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    slice_.Modality = "MR"
    slice_.ImagePositionPatient = [round(float(mm), 4) for mm in position]
    slice_.ImageOrientationPatient = [float(cosine) for cosine in orientation]
    slice_.PixelSpacing = [round(float(mm), 6) for mm in spacing]
    slice_.Rows, slice_.Columns = pixels.shape
    slice_.SamplesPerPixel = 1
    slice_.PhotometricInterpretation = "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
    slice_.PixelRepresentation = 0
    slice_.PixelData = np.ascontiguousarray(pixels, np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    slice_.save_as(path, enforce_file_format=True)


Writer = Callable[[Path, str, int, np.random.Generator], None]
LAYOUTS: dict[str, tuple[Writer, int]] = {  # with rows and columns of the real scans
    "chaos": (write_chaos, 288),
    "synapse": (write_synapse, 512),
    "cmr": (write_cmr, 256),
}


def write_raw(
    dataset: str, out: Path, scans: int = 4, seed: int = 0, size: int | None = None
) -> None:
    """Write the first ``scans`` published scans of ``chaos``, ``synapse`` or ``cmr`` to ``out``.

    Other seeds are other patients; ``size`` is in pixels (None: that of the real scans). Raises
    UserError where a number cannot be used, or ``out`` cannot be written or holds anything else.
    """
    writer, real_size = LAYOUTS[dataset]
    size = real_size if size is None else size
    config = OmegaConf.load(CONF_DIR / "data_prep" / f"{dataset}.yaml")
    scan_ids = [str(scan_id) for scan_id in config.scan_ids]
    if not 1 <= scans <= len(scan_ids):
        raise UserError(f"--scans={scans}: {dataset} has 1 to {len(scan_ids)}")
    if seed < 0 or size < 32:
        raise UserError(f"--seed={seed} --size={size}: choose 0 or more, and 32 or more")
    _claim(out, f"raw {dataset}", scans, seed)
    for scan_id in scan_ids[:scans]:
        try:
            writer(out, scan_id, size, np.random.default_rng([seed, int(scan_id)]))
        except OSError as error:
            raise UserError(
                f"{out}: cannot be written ({error.strerror}); choose another --out"
            ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fsmis phantom",
        description="Write generated scans, prepared or as the raw download of a dataset.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--kind", choices=ANATOMIES, help="prepared scans (default: abdomen)")
    form.add_argument("--dataset", choices=LAYOUTS, help="raw scans, as this one is downloaded")
    parser.add_argument("--scans", type=int, default=4, help="number of patients")
    parser.add_argument("--seed", type=int, default=0, help="other seeds are other patients")
    parser.add_argument("--size", type=int, help="rows and columns of raw scans (default: as real)")
    options = parser.parse_args(arguments)
    with command_line():
        if options.dataset:
            what = f"raw {options.dataset}"
            write_raw(options.dataset, options.out, options.scans, options.seed, options.size)
        elif options.size is not None:
            raise UserError(f"--size={options.size}: only for raw scans; add --dataset")
        else:
            what = options.kind or "abdomen"
            write_phantom(options.out, what, options.scans, options.seed)
    print(f"{options.out}: {options.scans} {what} scans")


if __name__ == "__main__":
    main()
