"""DICOM: a series read as one volume, and label maps written as segmentations of it."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import generate_uid

from fsmis.errors import UserError
from fsmis.files import write_atomic
from fsmis.source import package_version

POSITION, ORIENTATION = "0020|0032", "0020|0037"  # image position and orientation (patient)
PATIENT, FRAME = "0010|0020", "0020|0052"  # patient's id, frame of reference
MODALITY, PHOTOMETRIC, PADDING = "0008|0060", "0028|0004", "0028|0120"
INTERCEPT, SLOPE, RESCALE_TYPE = "0028|1052", "0028|1053", "0028|1054"
BITS, SIGNED = "0028|0101", "0028|0103"
SAME_MM = 0.01  # positions that differ by less are equal
SAME = 1e-3  # sizes in mm and cosines likewise
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_series(
    paths: Sequence[Path], gap_tolerance: float
) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """Read the slices of one series, in any order.

    ``gap_tolerance`` is the largest relative deviation of a distance between slices from their
    median.

    Returns:
        pixels float32 [Z, H, W] in grey values of the modality, each slice by its own rescaling,
        bright where it is shown bright, padding as dark as the darkest pixel; affine float64
        [4, 4] (x, y, z; mm, RAS as in NIfTI), and the file of each slice.

    Raises UserError where a file is no DICOM slice, or slices are missing, doubled or irregular.
    """
    images = [_read_slice(path) for path in paths]
    if len(paths) < 2:
        raise UserError(f"{paths[0].parent}: one slice is no volume; copy the whole series")
    first = images[0]
    for path, image in zip(paths, images, strict=True):
        if not _same_plane(image, first):
            raise UserError(
                f"{path}: {_plane(image)}, but {paths[0].name} {_plane(first)}; "
                "two series are mixed (a localizer?), keep one"
            )
    for tag, name in ((PATIENT, "patient"), (FRAME, "frame of reference")):
        known = [_text(image, tag) for image in images]
        if len(set(known)) == len(known):  # anonymised file by file, each slice has its own
            continue
        for path, value in zip(paths, known, strict=True):
            if value != known[0]:
                raise UserError(
                    f"{path}: {name} {value}, but {paths[0].name} {known[0]}; two scans are mixed, "
                    "keep one"
                )
    direction = np.array(first.GetDirection()).reshape(3, 3)
    positions = np.array([image.GetOrigin() for image in images])
    along = positions @ direction[:, 2]
    order = np.argsort(along, kind="stable")
    sorted_paths = [paths[i] for i in order]
    _check_gaps(sorted_paths, along[order], gap_tolerance)

    pixels = np.stack([_grey_values(paths[i], images[i]) for i in order])
    step = (positions[order[-1]] - positions[order[0]]) / (len(order) - 1)
    affine = np.eye(4)
    affine[:3, :2] = LPS_TO_RAS @ direction[:, :2] * first.GetSpacing()[:2]
    affine[:3, 2] = LPS_TO_RAS @ step
    affine[:3, 3] = LPS_TO_RAS @ positions[order[0]]
    return pixels, affine, sorted_paths


def _grey_values(path: Path, image: sitk.Image) -> np.ndarray:
    """Rescaled pixels float32 [H, W]; padding as dark as the slice's darkest pixel.

    SimpleITK rescales each slice by its own header, and flips MONOCHROME1, which stores bright as
    low, about the middle of the storable range.
    """
    kind = _text(image, RESCALE_TYPE)
    if _text(image, MODALITY) == "CT" and kind not in ("", "HU", "US"):
        raise UserError(
            f"{path}: its CT values are {kind}, not Hounsfield units; export the series again"
        )
    pixels = sitk.GetArrayFromImage(image)[0].astype(np.float32)
    if not image.HasMetaDataKey(PADDING):
        return pixels
    slope, stored = _number(image, SLOPE, 1), _number(image, PADDING, 0)
    if _text(image, PHOTOMETRIC) == "MONOCHROME1":
        bits, signed = int(_number(image, BITS, 16)), int(_number(image, SIGNED, 0))
        stored = 2**bits - 1 - signed * 2**bits - stored
    padding = slope * stored + _number(image, INTERCEPT, 0)
    padded = np.isclose(pixels, padding, atol=abs(slope) / 2)
    if padded.any() and not padded.all():
        pixels[padded] = pixels[~padded].min()
    return pixels


def _text(image: sitk.Image, tag: str) -> str:
    return image.GetMetaData(tag).strip() if image.HasMetaDataKey(tag) else ""


def _number(image: sitk.Image, tag: str, default: float) -> float:
    text = _text(image, tag)
    return float(text) if text else default


def _read_slice(path: Path) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        size = path.stat().st_size
        raise UserError(
            f"{path}: no readable DICOM image ({size} bytes); copy or download it again, or move "
            "it out of the folder, if it holds none, as segmentations and structure sets"
        ) from error
    missing = [key for key in (POSITION, ORIENTATION) if not image.HasMetaDataKey(key)]
    if missing:
        raise UserError(
            f"{path}: no position or orientation in the DICOM header ({missing[0]}), so the slices "
            "cannot be put in order; export the series again"
        )
    if (
        image.GetDimension() != 3
        or image.GetSize()[2] != 1
        or image.GetNumberOfComponentsPerPixel() > 1
    ):
        raise UserError(f"{path}: not one grey slice; keep the classic single-frame series alone")
    return image


def _same_plane(image: sitk.Image, other: sitk.Image) -> bool:
    numbers = [
        [*some.GetSize(), *some.GetSpacing()[:2], *some.GetDirection()] for some in (image, other)
    ]
    return np.allclose(numbers[0], numbers[1], rtol=0, atol=SAME)


def _plane(image: sitk.Image) -> str:
    columns, rows, _ = image.GetSize()
    x, y, _ = image.GetSpacing()
    row_x, row_y, row_z = np.round(image.GetDirection()[::3], 3) + 0.0
    col_x, col_y, col_z = np.round(image.GetDirection()[1::3], 3) + 0.0
    return (
        f"has {rows} x {columns} pixels of {y:.3f} x {x:.3f} mm along "
        f"({row_x:g}, {row_y:g}, {row_z:g}) and ({col_x:g}, {col_y:g}, {col_z:g})"
    )


def _check_gaps(paths: Sequence[Path], along: np.ndarray, tolerance: float) -> None:
    """Refuse doubled and missing slices; ``along`` is ascending, in mm."""
    gaps = np.diff(along)
    for i in np.flatnonzero(gaps < SAME_MM).tolist():
        raise UserError(
            f"{paths[i + 1]}: lies at the same position as {paths[i].name} ({along[i]:.2f} mm); "
            "two series are mixed (in phase and out of phase?) or a file is there twice, keep one"
        )
    usual = float(np.median(gaps))
    for i in np.flatnonzero(np.abs(gaps - usual) > tolerance * usual).tolist():
        raise UserError(
            f"{paths[i].parent}: {gaps[i]:.2f} mm between {paths[i].name} and "
            f"{paths[i + 1].name}, {usual:.2f} mm elsewhere; a slice is missing, copy the whole "
            "series again"
        )


def series_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, in the order of their names; none where it holds no such.

    A file counts by its first bytes, whatever its name; indices (DICOMDIR) do not.
    """
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "DICOMDIR" and _has_preamble(path)
    ]


def _has_preamble(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from error


MAKER = "fsmis"  # as manufacturer, model and algorithm
SERIES_NUMBER = 9100  # far from those of a scanner
IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
MAY_BE_BLANK = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)


def write_segmentation(path: Path, labels: np.ndarray, slices: Sequence[Path]) -> None:
    """Write labels as a binary segmentation object (DICOM PS3.3 A.51), which viewers lay over a
    series: a segment for each value, named ``label <value>``.

    Args:
        path: the file to write.
        labels: whole numbers [Z, H, W], 0 for background.
        slices: the DICOM file of each slice.

    Raises:
        UserError: nothing is labelled, the series lacks what a segmentation refers to, or the file
            cannot be written.
    """
    # highdicom is an extra, and pydicom's codes take long to load
    from highdicom import UID, AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    values = np.unique(labels[labels > 0])
    if not len(values):
        raise UserError(
            f"{path}: nothing was found, and a DICOM-SEG cannot be empty; choose .nii.gz"
        )
    version = package_version("fsmis") or "unknown"
    algorithm = AlgorithmIdentificationSequence(
        MAKER, codes.cid7162.ArtificialIntelligence, version
    )
    segments = [
        SegmentDescription(
            segment_number=number,
            segment_label=f"label {value}",
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Organ,
            algorithm_type="SEMIAUTOMATIC",  # somebody labelled the support
            algorithm_identification=algorithm,
        )
        for number, value in enumerate(values, 1)
    ]
    numbers = np.where(labels > 0, np.searchsorted(values, labels) + 1, 0)
    sources = [_source(file) for file in slices]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of patients' names and the like, as they came in
            written = Segmentation(
                source_images=sources,
                pixel_array=numbers.astype(np.uint8 if len(values) < 256 else np.uint16),
                segmentation_type="BINARY",
                segment_descriptions=segments,
                series_instance_uid=UID(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=UID(),
                instance_number=1,
                manufacturer=MAKER,
                manufacturer_model_name=MAKER,
                software_versions=version,
                device_serial_number="0",
                series_description=f"{MAKER} segmentation, not for clinical use",
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{slices[0].parent}: its headers do not suffice for a DICOM-SEG ({error}); choose "
            ".nii.gz"
        ) from error
    content = io.BytesIO()
    written.save_as(content)
    write_atomic(path, content.getvalue())


def _source(file: Path) -> pydicom.Dataset:
    """Headers of a slice, completed where somebody blanked what a segmentation refers to.

    The slice's own identity comes back from the file's preamble; that of study and series, which
    stands nowhere else, is made from the frame of reference, the same for all slices.
    """
    source = pydicom.dcmread(file, stop_before_pixels=True)
    frame = str(source.get("FrameOfReferenceUID", ""))
    made = {key: generate_uid(entropy_srcs=[key, frame]) for key in IDENTITY}
    known = {
        "SOPClassUID": source.file_meta.get("MediaStorageSOPClassUID"),
        "SOPInstanceUID": source.file_meta.get("MediaStorageSOPInstanceUID"),
        **made,
    }
    for key, value in known.items():
        if not source.get(key):
            setattr(source, key, value)
    for key in MAY_BE_BLANK:
        if key not in source:
            setattr(source, key, "")
    return source
