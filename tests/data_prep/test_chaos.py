"""CHAOS from DICOM and PNG: order, orientation, flips, and all ways in which a series is broken."""

import hashlib
import shutil
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.cli import load_source
from data_prep.download import download
from data_prep.geometry import resample_label
from data_prep.source import PreparedScan
from fsmis.data.dicom import read_series
from fsmis.data.expectation import in_plane_gradient, outline_contrast
from fsmis.data.nifti import read_volume
from fsmis.errors import UserError
from fsmis.tools.phantom import GREY, write_dicom
from fsmis.tools.phantom_anatomy import ABDOMEN, mr_patient

SIZE, PIXEL, STEP, SLICES = 96, 3.75, 8.0, 20
LPS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0)}
SPACING = (7.70, 1.25, 1.25)


@pytest.fixture(scope="module")
def patient() -> tuple[np.ndarray, np.ndarray]:
    """Image uint16, label [Z, H, W]: columns grow to the left, rows to the front, z to the head."""

    anatomy = replace(ABDOMEN, n_slices=SLICES, spacing=(STEP, PIXEL, PIXEL))
    image, label = mr_patient(anatomy, SIZE, np.random.default_rng(7))
    return np.round(1000 * image).astype(np.uint16), label


def write_series(
    folder: Path,
    image: np.ndarray,
    label: np.ndarray,
    *,
    columns: str = "L",
    rows: str = "P",
    flip_png: bool = True,
    order: list[int] | None = None,
) -> Path:
    """Write a series whose columns and rows grow as named, in files of any order."""
    axes = [axis for axis, way in ((2, columns == "R"), (1, rows == "P")) if way]
    pixels, ids = np.flip(image, axes), np.flip(label, axes)
    start_x = (SIZE - 1) * PIXEL if columns == "R" else 0
    start_y = 0 if rows == "P" else (SIZE - 1) * PIXEL
    for number, z in enumerate(order or range(len(image)), start=1):
        name = f"IMG-0004-{number:05d}"
        path = folder / "DICOM_anon" / f"{name}.dcm"
        orientation = (*LPS[columns], *LPS[rows])
        write_dicom(path, pixels[z], (start_x, start_y, z * STEP), orientation, (PIXEL, PIXEL))
        png = folder / "Ground" / f"{name}.png"
        png.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(GREY[np.flip(ids[z], 0) if flip_png else ids[z]]).save(png)
    return folder


def prepared(folder: Path) -> PreparedScan:
    source = load_source("chaos")
    return source.prepare(source.find(folder.parents[1])["1"])


@pytest.fixture
def series(patient, tmp_path) -> Path:
    return write_series(tmp_path / "raw" / "MR" / "1" / "T2SPIR", *patient)


def expected_label(label: np.ndarray) -> np.ndarray:
    """The generator's truth, resampled; centre cut or padded to 256."""
    shape = [
        int(n * o / w + 1)
        for n, o, w in zip(label.shape, (STEP, PIXEL, PIXEL), SPACING, strict=True)
    ]
    resampled = resample_label(label, (STEP, PIXEL, PIXEL), SPACING, shape)
    start = (shape[1] - 256) // 2
    return resampled[:, start : start + 256, start : start + 256]


@settings(max_examples=8, deadline=None)
@given(
    columns=st.sampled_from("LR"),
    rows=st.sampled_from("PA"),
    flip_png=st.booleans(),
    order=st.permutations(range(SLICES)),
)
def test_labels_agree_with_the_truth_however_the_series_lies(
    patient, tmp_path_factory, columns, rows, flip_png, order
):
    image, label = patient
    folder = tmp_path_factory.mktemp("chaos") / "MR" / "1" / "T2SPIR"
    write_series(
        folder, image, label, columns=columns, rows=rows, flip_png=flip_png, order=list(order)
    )
    scan = prepared(folder)
    shutil.rmtree(folder.parents[1])
    assert scan.notes == {"label_rows_flipped": flip_png}
    assert scan.image.shape == scan.label.shape and scan.image.shape[1:] == (256, 256)
    np.testing.assert_allclose(np.diag(scan.affine), [-1.25, 1.25, 7.7, 1], atol=1e-6)
    truth = expected_label(label)
    for value in (1, 2, 3, 4):
        found, organ = scan.label == value, truth == value
        assert 2 * (found & organ).sum() / (found.sum() + organ.sum()) >= 0.98
    assert outline_contrast(in_plane_gradient(scan.image), scan.label) > 2


def test_intensities_are_clipped_at_the_top_alone(series, patient):
    scan = prepared(series)
    assert scan.image.max() == pytest.approx(np.percentile(patient[0], 99.5), rel=0.02)
    assert scan.image.min() == patient[0].min()


def test_the_prepared_form_is_that_of_the_published_scans(chaos_root, series):
    """Columns to the left, rows to the front, slices to the head; label ids; liver on the right."""
    scan = prepared(series)
    for path in sorted(chaos_root.glob("label_*.nii.gz"))[:3]:
        label, _, affine = read_volume(path)
        assert (np.sign(np.diag(affine)) == np.sign(np.diag(scan.affine))).all()
        for found in (label, scan.label):
            liver, spleen = (np.argwhere(found == value).mean(axis=0) for value in (1, 4))
            assert liver[2] < 128 < spleen[2]


# faults


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        prepared(folder)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def dicom(folder: Path, number: int) -> Path:
    return folder / "DICOM_anon" / f"IMG-0004-{number:05d}.dcm"


def ground(folder: Path, number: int) -> Path:
    return folder / "Ground" / f"IMG-0004-{number:05d}.png"


def change(path: Path, **fields) -> None:
    slice_ = pydicom.dcmread(path)
    for name, value in fields.items():
        setattr(slice_, name, value)
    slice_.save_as(path)


def test_other_sequences_and_leftovers_of_macos_are_passed_over(series):
    """T1-DUAL, in phase and out of phase, lies beside; a Mac's own files lie in a second tree."""
    dual = series.with_name("T1DUAL") / "DICOM_anon" / "InPhase"
    shutil.copytree(series / "DICOM_anon", dual)
    left = series.parents[2] / "__MACOSX" / "MR" / "1" / "T2SPIR" / "DICOM_anon"
    left.mkdir(parents=True)
    for folder in (left, series / "DICOM_anon"):
        (folder / "._IMG-0004-00001.dcm").write_bytes(b"\0\5\x16\7")
    source = load_source("chaos")
    assert len(source.find(series.parents[2])["1"]) == 2 * SLICES
    assert prepared(series).label.any()


def test_a_missing_slice(series):
    dicom(series, 8).unlink()
    ground(series, 8).unlink()
    refused(series, "16.00 mm between IMG-0004-00007.dcm and IMG-0004-00009.dcm", "missing")


def test_a_missing_png(series):
    ground(series, 8).unlink()
    refused(series, "IMG-0004-00008.dcm", "no IMG-0004-00008.png")


def test_a_png_without_slice(series):
    dicom(series, SLICES).unlink()
    refused(series, f"IMG-0004-{SLICES:05d}.png", "no slice")


def test_two_slices_at_one_position(series):
    shutil.copy(dicom(series, 3), series / "DICOM_anon" / "IMG-0005-00003.dcm")
    refused(series, "same position", "IMG-0004-00003.dcm", "16.00 mm", "out of phase")


def test_a_localizer_among_the_slices(series):
    change(dicom(series, 2), ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    refused(series, "IMG-0004-00002.dcm", "localizer", "(0, 0, -1)")


def test_slices_of_two_sizes(series, patient):
    path = dicom(series, 2)
    write_dicom(path, patient[0][1, :48, :48], (0, 0, STEP), (1, 0, 0, 0, 1, 0), (7.5, 7.5))
    refused(series, "IMG-0004-00002.dcm", "48 x 48 pixels of 7.500 x 7.500 mm", "two series")


def test_slices_of_two_pixel_sizes(series):
    change(dicom(series, 2), PixelSpacing=[PIXEL, PIXEL + 1])
    refused(series, "3.750 x 4.750 mm", "two series")


@pytest.mark.parametrize("content", [b"", b"not DICOM at all" * 100])
def test_a_file_that_is_no_dicom(series, content):
    dicom(series, 4).write_bytes(content)
    refused(series, "IMG-0004-00004.dcm", f"({len(content)} bytes)")


def test_a_truncated_slice(series):
    path = dicom(series, 4)
    path.write_bytes(path.read_bytes()[:2000])
    refused(series, "IMG-0004-00004.dcm")


@pytest.mark.parametrize("field", ["ImagePositionPatient", "ImageOrientationPatient"])
def test_a_slice_that_lies_nowhere(series, field):
    slice_ = pydicom.dcmread(dicom(series, 4))
    delattr(slice_, field)
    slice_.save_as(dicom(series, 4))
    refused(series, "IMG-0004-00004.dcm", "no position or orientation")


def rows_of(path: Path) -> np.ndarray:
    return read_series(sorted((path / "DICOM_anon").iterdir()), 0.1)[0]


def test_a_slice_stored_inverted_is_turned(series):
    """MONOCHROME1: low stored values are shown bright."""
    before = rows_of(series)
    path = dicom(series, 3)
    stored = pydicom.dcmread(path)
    highest = 2**stored.BitsStored - 1
    change(path, PhotometricInterpretation="MONOCHROME1")
    stored_pixels = (highest - stored.pixel_array).astype(np.uint16)
    change(path, PixelData=stored_pixels.tobytes())
    np.testing.assert_allclose(rows_of(series), before)


def test_each_slice_has_its_own_rescaling(series):
    before = rows_of(series)
    for number, slope in ((1, 2.0), (2, 0.5)):
        change(dicom(series, number), RescaleSlope=slope, RescaleIntercept=7)
    after = rows_of(series)
    np.testing.assert_allclose(after[2:], before[2:])
    np.testing.assert_allclose(after[0], 2 * before[0] + 7)
    np.testing.assert_allclose(after[1], 0.5 * before[1] + 7)


def test_padding_is_as_dark_as_the_darkest_pixel(series):
    path = dicom(series, 1)
    before = rows_of(series)
    stored = pydicom.dcmread(path).pixel_array.copy()
    stored[:10] = 60000
    change(path, PixelData=stored.tobytes())
    slice_ = pydicom.dcmread(path)
    slice_.add_new("PixelPaddingValue", "US", 60000)
    slice_.save_as(path)
    after = rows_of(series)
    np.testing.assert_allclose(after[0, 10:], before[0, 10:])
    assert (after[0, :10] == before[0, 10:].min()).all()


@pytest.mark.parametrize(
    "field, name", [("PatientID", "patient"), ("FrameOfReferenceUID", "frame of reference")]
)
def test_a_slice_of_another_scan(series, field, name):
    for number in range(1, SLICES + 1):
        change(dicom(series, number), **{field: "1.2.3"})
    prepared(series)
    change(dicom(series, 2), **{field: "1.2.4"})
    refused(series, name, "1.2.4", "1.2.3", "two scans are mixed")


def test_a_series_anonymised_file_by_file(series):
    """Where every slice has a frame of reference of its own, none is of another scan."""
    before = prepared(series)
    for number in range(1, SLICES + 1):
        change(dicom(series, number), FrameOfReferenceUID=f"1.2.{number}")
    np.testing.assert_array_equal(prepared(series).image, before.image)


def test_ct_values_other_than_hounsfield_units(series):
    for number in range(1, SLICES + 1):
        change(dicom(series, number), Modality="CT", RescaleType="OD", RescaleSlope=1)
    refused(series, "OD", "Hounsfield")


def test_a_single_slice(series):
    for number in range(2, SLICES + 1):
        dicom(series, number).unlink()
    refused(series, "one slice is no volume")


def test_a_constant_series(series):
    for number in range(1, SLICES + 1):
        change(dicom(series, number), PixelData=bytes(2 * SIZE * SIZE))
    refused(series, "every voxel is 0")


def test_an_unknown_grey_value(series):
    path = ground(series, 9)
    grey = np.array(Image.open(path))
    grey[5, 5] = 90
    Image.fromarray(grey).save(path)
    refused(series, "IMG-0004-00009.png", "grey value 90", "55-70")


def test_grey_values_count_not_their_rank(series, patient):
    """With one organ absent from all files the others keep their ids; values may stray a little."""
    for number in range(1, SLICES + 1):
        grey = np.array(Image.open(ground(series, number)))
        grey[grey == 63] = 0
        grey[grey == 252] = 247
        Image.fromarray(grey).save(ground(series, number))
    assert set(np.unique(prepared(series).label)) == {0, 2, 3, 4}


@pytest.mark.parametrize("mode", ["RGB", "1", "I;16"])
def test_a_png_of_another_kind(series, mode):
    Image.new(mode, (SIZE, SIZE)).save(ground(series, 9))
    refused(series, "IMG-0004-00009.png", f"mode {mode}", "8-bit")


def test_a_png_of_another_size(series):
    Image.new("L", (SIZE, SIZE - 1)).save(ground(series, 9))
    refused(series, f"({SIZE - 1}, {SIZE})", f"({SIZE}, {SIZE})")


def test_a_truncated_png(series):
    path = ground(series, 9)
    path.write_bytes(path.read_bytes()[:60])
    refused(series, "IMG-0004-00009.png", "not a whole PNG")


def test_empty_labels(series):
    for number in range(1, SLICES + 1):
        Image.new("L", (SIZE, SIZE)).save(ground(series, number))
    refused(series, "empty")


def test_labels_of_another_scan(series):
    """Neither as stored nor with flipped rows do their outlines lie on edges."""
    for number in range(1, SLICES + 1):
        grey = np.array(Image.open(ground(series, number)))
        Image.fromarray(np.roll(grey.T, (15, -20), (0, 1))).save(ground(series, number))
    refused(series, "labels lie on no organ", "outline contrast")


@pytest.mark.parametrize("part", ["DICOM_anon", "Ground"])
def test_half_a_scan(series, part):
    shutil.rmtree(series / part)
    (series / "Ground").mkdir(exist_ok=True)
    refused(series, f"no files in {part}")


def test_the_test_set_is_named(series):
    shutil.rmtree(series / "Ground")
    refused(series, "CHAOS_Test_Sets", "CHAOS_Train_Sets.zip")


def test_a_folder_without_scans(tmp_path):
    with pytest.raises(UserError, match=r"Train_Sets/MR.*make data-chaos"):
        load_source("chaos").find(tmp_path)


def test_two_copies_of_a_scan(series):
    shutil.copytree(series, series.parents[2] / "copy" / "1" / "T2SPIR")
    with pytest.raises(UserError, match="twice"):
        load_source("chaos").find(series.parents[2])


# the download, from a server of this machine


@pytest.fixture
def served(tmp_path):
    """A folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_download_appears_only_whole(served, tmp_path):
    folder, address = served
    content = b"not quite a zip" * 1000
    (folder / "scans.zip").write_bytes(content)
    url, path = f"{address}/scans.zip", tmp_path / "raw" / "scans.zip"
    with pytest.raises(UserError, match="SHA-256 is not the published 0000"):
        download(url, path, "0" * 64, timeout_s=5)
    assert not list(path.parent.iterdir())
    download(url, path, hashlib.sha256(content).hexdigest(), timeout_s=5)
    assert path.read_bytes() == content
    (folder / "scans.zip").unlink()  # what is there is not asked for again
    download(url, path, hashlib.sha256(content).hexdigest(), timeout_s=5)
    with pytest.raises(UserError, match=r"cannot be downloaded .*save it as"):
        download(url, path.with_name("other.zip"), "0" * 64, timeout_s=5)
