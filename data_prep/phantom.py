"""Generated raw downloads: ``python -m data_prep.phantom --dataset chaos --out DIR``.

Patients of ``fsmis.phantom`` in the exact layouts of the three datasets, to try the whole way from
raw files to tables without a download.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from data_prep.cli import load_source
from fsmis.cli import command_line
from fsmis.errors import UserError
from fsmis.nifti import write_volume
from fsmis.phantom import ABDOMEN, CARDIAC, Anatomy, Tissue, mr_patient, paint

GREY = np.array([0, 63, 126, 189, 252], np.uint8)  # of label ids 0..4 in the PNG files of CHAOS
CMR_VALUES = np.array([0, 200, 500, 600], np.int16)  # of label ids 0..3 in the files of MS-CMRSeg
BRIGHTEST = 1000  # stored value of relative intensity 1
MR_FIELD, CT_FIELD = 360.0, 380.0  # side of the slices in mm
WINDOW = -125, 275  # HU of relative intensity 0 and 1 in CT
AIR = -1000  # HU
NOISE = 18  # HU


def _rib(angle: float) -> Tissue:
    """A rod of bone along the trunk's wall."""
    return Tissue(0, 1.1, (0, 78 * np.sin(angle), 118 * np.cos(angle)), (500, 5, 8))


CT = replace(
    ABDOMEN,
    tissues=(
        Tissue(0, 0.06, (0, 0, 0), (500, 98, 138)),  # fat
        Tissue(0, 0.40, (0, 0, 0), (460, 86, 126)),  # muscle and mesentery
        Tissue(7, 0.42, (20, 28, 45), (60, 36, 48)),  # stomach
        Tissue(0, -2.10, (20, 50, 45), (30, 12, 24)),  # air in it
        Tissue(0, 0.32, (-55, 38, -15), (35, 18, 28)),  # bowel
        Tissue(0, 0.95, (0, -50, 0), (500, 19, 22)),  # vertebrae
        Tissue(0, 0.40, (0, -66, 0), (500, 6, 8)),  # spinal canal
        Tissue(8, 0.75, (0, -23, 8), (500, 9, 9)),  # aorta
        Tissue(9, 0.62, (0, -20, -16), (500, 9, 10)),  # inferior vena cava
        *(_rib(angle) for angle in np.linspace(-0.9, np.pi + 0.9, 9)),
        Tissue(6, 0.58, (28, 5, -66), (66, 66, 68)),  # liver
        Tissue(4, 0.34, (0, 35, -40), (18, 14, 14)),  # gallbladder
        Tissue(1, 0.63, (32, -25, 94), (44, 36, 21)),  # spleen
        Tissue(2, 0.76, (-18, -40, -58), (48, 20, 24)),  # right kidney
        Tissue(3, 0.76, (-8, -40, 58), (48, 20, 24)),  # left kidney
    ),
)


def write_chaos(out: Path, scan_id: str, size: int, rng: np.random.Generator) -> None:
    """Write ``CHAOS_Train_Sets/Train_Sets/MR/<id>/T2SPIR``: DICOM and PNG files of one scan."""
    anatomy = _stretched(ABDOMEN, size, MR_FIELD, rng.uniform(6, 9))
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
    anatomy = _stretched(CT, size, CT_FIELD, rng.uniform(2.5, 5))
    intensity, label = paint(anatomy, (anatomy.n_slices, size, size), rng)
    low, high = WINDOW
    image = np.where(intensity == 0, AIR, low + (high - low) * intensity)
    image = np.clip(image + NOISE * rng.standard_normal(image.shape), AIR - 24, None)
    folder = out / "RawData" / "Training"
    affine = _affine(anatomy, size)
    write_volume(folder / "img" / f"img{int(scan_id):04d}.nii.gz", image.astype(np.int16), affine)
    write_volume(folder / "label" / f"label{int(scan_id):04d}.nii.gz", label, affine)


def write_cmr(out: Path, scan_id: str, size: int, rng: np.random.Generator) -> None:
    """Write ``patient<N>_C0.nii.gz`` and ``patient<N>_C0_manual.nii.gz``."""
    anatomy = _stretched(CARDIAC, size, MR_FIELD, rng.uniform(8, 13))
    image, label = mr_patient(anatomy, size, rng)
    affine = _affine(anatomy, size)
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
        path: its file.
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
WRITERS: dict[str, tuple[Writer, int]] = {  # with rows and columns of the real scans
    "chaos": (write_chaos, 288),
    "synapse": (write_synapse, 512),
    "cmr": (write_cmr, 256),
}


def write_raw(dataset: str, out: Path, scans: int, seed: int, size: int) -> None:
    """Write the first ``scans`` published scans of a dataset to ``out``.

    Args:
        dataset: ``chaos``, ``synapse`` or ``cmr``.
        out: folder.
        scans: number of patients.
        seed: other seeds are other patients.
        size: rows and columns.

    Raises:
        UserError: a number cannot be used, or ``out`` cannot be written.
    """
    scan_ids = load_source(dataset).scan_ids
    if not 1 <= scans <= len(scan_ids):
        raise UserError(f"--scans={scans}: {dataset} has 1 to {len(scan_ids)}")
    if seed < 0 or size < 32:
        raise UserError(f"--seed={seed} --size={size}: choose 0 or more, and 32 or more")
    writer, _ = WRITERS[dataset]
    for scan_id in scan_ids[:scans]:
        try:
            writer(out, scan_id, size, np.random.default_rng([seed, int(scan_id)]))
        except OSError as error:
            raise UserError(
                f"{out}: cannot be written ({error.strerror}); choose another --out"
            ) from error


def _stretched(anatomy: Anatomy, size: int, field_mm: float, z_mm: float) -> Anatomy:
    """The same trunk in slices of ``field_mm`` and ``size`` pixels, ``z_mm`` apart."""
    length = anatomy.n_slices * anatomy.spacing[0]
    pixel = field_mm / size
    return replace(anatomy, n_slices=round(length / z_mm), spacing=(z_mm, pixel, pixel))


def _affine(anatomy: Anatomy, size: int) -> np.ndarray:
    z, y, x = anatomy.spacing
    affine = np.diag([-x, y, z, 1.0])
    affine[:3, 3] = x * size / 2, -y * size / 2, 0
    return affine


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one line on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.phantom", description="Write generated scans as raw downloads."
    )
    parser.add_argument("--dataset", choices=WRITERS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--scans", type=int, default=4, help="number of patients")
    parser.add_argument("--seed", type=int, default=0, help="other seeds are other patients")
    parser.add_argument("--size", type=int, help="rows and columns (default: as the real scans)")
    options = parser.parse_args(arguments)
    size = options.size or WRITERS[options.dataset][1]
    with command_line():
        write_raw(options.dataset, options.out, options.scans, options.seed, size)
    print(f"{options.out}: {options.scans} raw scans of {options.dataset}")


if __name__ == "__main__":
    main()
