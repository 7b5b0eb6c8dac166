"""Label maps as DICOM segmentation objects (DICOM PS3.3 A.51), which viewers lay over a series."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from highdicom import UID, AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from fsmis.errors import UserError
from fsmis.files import write_atomic
from fsmis.source import package_version

MAKER = "fsmis"  # as manufacturer, model and algorithm
SERIES_NUMBER = 9100  # far from those of a scanner
IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
PATIENT = (  # may be blank, must be there
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)


def write_segmentation(path: Path, labels: np.ndarray, slices: Sequence[Path]) -> None:
    """Write labels as a binary segmentation, a segment for each value, named ``label <value>``.

    Args:
        path: the file to write.
        labels: whole numbers [Z, H, W], 0 for background.
        slices: the DICOM file of each slice.

    Raises:
        UserError: nothing is labelled, the series lacks what a segmentation refers to, or the file
            cannot be written.
    """
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
    for key in PATIENT:
        if key not in source:
            setattr(source, key, "")
    return source
