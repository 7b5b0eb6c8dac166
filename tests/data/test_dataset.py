"""The prepared-data reader: what it accepts, and what it refuses in one clear line."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from omegaconf import OmegaConf

from fsmis.data.dataset import Dataset, scale_intensities
from fsmis.data.nifti import write_volume
from fsmis.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf" / "dataset"
AFFINE = np.diag([-1.25, 1.25, 7.7, 1.0])


def open_dataset(name: str, root: Path, **overrides: object) -> Dataset:
    """The dataset as its YAML in conf/ describes it, in another folder."""
    return instantiate(OmegaConf.load(CONF / f"{name}.yaml"), root=str(root), **overrides)


def write_scan(root: Path, number: int | str, label: np.ndarray, suffix: str = ".nii.gz") -> None:
    """An image of random intensities with the given label [Z, H, W]."""
    image = np.random.default_rng(0).normal(100, 20, label.shape).astype(np.float32)
    write_volume(root / f"image_{number}{suffix}", image, AFFINE)
    write_volume(root / f"label_{number}{suffix}", label, AFFINE)


def label_of(*values: float, dtype: type = np.uint8) -> np.ndarray:
    """Label [2, 8, 8] of one row of each value on background."""
    label = np.zeros((2, 8, 8), dtype)
    for row, value in enumerate(values):
        label[:, row] = value
    return label


@pytest.fixture
def two_scans(tmp_path: Path) -> Path:
    """A folder of two tiny scans with all four organs."""
    write_scan(tmp_path, 1, label_of(1, 2, 3, 4))
    write_scan(tmp_path, 2, label_of(1, 2, 3, 4))
    return tmp_path


def refusal_of_load(dataset: Dataset, scan_id: str = "1") -> str:
    with pytest.raises(UserError) as caught:
        dataset.load(scan_id)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refusal_of_folder(name: str, root: Path, **overrides: object) -> str:
    with pytest.raises(Exception) as caught:  # Hydra wraps what a constructor raises
        open_dataset(name, root, **overrides)
    cause = caught.value if isinstance(caught.value, UserError) else caught.value.__cause__
    assert isinstance(cause, UserError)
    assert "\n" not in str(cause)
    return str(cause)


# what is accepted


def test_real_chaos_scans(chaos_root: Path) -> None:
    dataset = open_dataset("chaos_mri", chaos_root)
    assert " ".join(dataset.scan_ids) == "1 2 3 5 8 10 13 15 19 20 21 22 31 32 33 34 36 37 38 39"
    scan = dataset.load("36")
    assert scan.image.shape == scan.label.shape == (45, 256, 256)
    assert scan.image.dtype == np.float32 and scan.label.dtype == np.uint8
    assert (scan.image.min(), scan.image.max()) == (0, 1)
    assert scan.spacing == pytest.approx((7.7, 1.25, 1.25))
    # the liver lies at small columns, the spleen at large ones, the kidneys in posterior rows
    centre = {
        organ: np.argwhere(scan.label == i).mean(axis=0) for organ, i in dataset.organs.items()
    }
    assert centre["liver"][2] < 128 < centre["spleen"][2]
    assert max(centre["RK"][1], centre["LK"][1]) < 128
    assert centre["RK"][0] < centre["liver"][0]


@pytest.mark.parametrize("name", ["phantom", "chaos_mri"])
def test_phantom_scans(phantom_root: Path, name: str) -> None:
    dataset = open_dataset(name, phantom_root, fold_starts=2)
    assert dataset.scan_ids == ["1", "2", "3", "4"]
    assert dataset.fold_starts == [0, 2, 4]
    scan = dataset.load("3")
    assert set(np.unique(scan.label)) == {0, 1, 2, 3, 4}
    assert scan.id == "3"


def test_scans_are_in_numeric_order_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for number in ("10", "0002", "1"):
        write_scan(tmp_path, number, label_of(1))
    write_scan(tmp_path, 3, label_of(1), suffix=".nii")
    (tmp_path / "._image_1.nii.gz").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "supervoxels").mkdir()
    dataset = open_dataset("phantom", tmp_path)
    assert dataset.scan_ids == ["1", "2", "3", "10"]
    assert [dataset.load(scan_id).id for scan_id in dataset.scan_ids] == dataset.scan_ids


def test_a_linked_folder_with_spaces_that_nobody_may_write(two_scans: Path) -> None:
    link = two_scans / "données à lire"
    link.symlink_to(two_scans)
    two_scans.chmod(0o555)
    try:
        assert open_dataset("phantom", link).load("1").image.shape == (2, 8, 8)
    finally:
        two_scans.chmod(0o755)


def test_odd_sizes_and_single_slices(tmp_path: Path) -> None:
    write_scan(tmp_path, 1, np.ones((1, 7, 5), np.uint8))
    write_scan(tmp_path, 2, np.ones((3, 300, 2), np.uint8))
    dataset = open_dataset("phantom", tmp_path)
    assert dataset.load("1").image.shape == (1, 7, 5)
    assert dataset.load("2").image.shape == (3, 300, 2)


def test_nearly_whole_labels_are_rounded(two_scans: Path) -> None:
    write_scan(two_scans, 1, label_of(0.9999, 2.0001, -0.0001, dtype=np.float32))
    label = open_dataset("phantom", two_scans).load("1").label
    np.testing.assert_array_equal(label, label_of(1, 2, 0))


def test_raw_cmr_values_are_prepared_ids(tmp_path: Path) -> None:
    write_scan(tmp_path, 1, label_of(200, 500, 600, dtype=np.int16))
    write_scan(tmp_path, 2, label_of(1, 2, 3))
    dataset = open_dataset("cmr", tmp_path, fold_starts=2)
    np.testing.assert_array_equal(dataset.load("1").label, dataset.load("2").label)


def test_raw_values_that_are_ids_of_others_change_places(tmp_path: Path) -> None:
    for number in (1, 2):
        write_scan(tmp_path, number, label_of(1, 2, 1001, dtype=np.int16))
    values = {1: 2, 2: 1, 1001: 3}
    dataset = open_dataset("phantom", tmp_path, label_values=values)
    np.testing.assert_array_equal(dataset.load("1").label, label_of(2, 1, 3))


def test_unscored_synapse_organs_are_kept(tmp_path: Path) -> None:
    for number in (1, 2):
        write_scan(tmp_path, number, label_of(1, 2, 3, 6, 13, 4))
    dataset = open_dataset("synapse_ct", tmp_path, fold_starts=2)
    np.testing.assert_array_equal(dataset.load("1").label, label_of(1, 2, 3, 6, 13, 4))


# intensities


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_scaled_intensities_stay_in_range_and_order(volume: np.ndarray) -> None:
    scaled = scale_intensities(volume, (0.5, 99.5))
    assert scaled.dtype == np.float32 and scaled.shape == volume.shape
    assert np.isfinite(scaled).all() and scaled.min() >= 0 and scaled.max() <= 1
    order = np.argsort(volume, axis=None)
    assert (np.diff(scaled.ravel()[order]) >= 0).all()
    if volume.min() < volume.max():
        assert scaled.max() > scaled.min()


def test_a_constant_volume_is_black() -> None:
    np.testing.assert_array_equal(scale_intensities(np.full((2, 3, 4), 7), (0.5, 99.5)), 0)


def test_outliers_do_not_darken_the_rest() -> None:
    volume = np.linspace(0, 100, 10_000).reshape(1, 100, 100)
    volume[0, 0, 0], volume[0, 99, 99] = -1e9, 1e9
    scaled = scale_intensities(volume, (0.5, 99.5))
    assert scaled[0, 50, 0] == pytest.approx(0.5, abs=0.01)


def test_unsigned_and_offset_intensities_scale_alike(two_scans: Path) -> None:
    volume = np.random.default_rng(1).integers(0, 2000, (2, 8, 8))
    write_volume(two_scans / "image_1.nii.gz", volume.astype(np.uint16), AFFINE)
    write_volume(two_scans / "image_2.nii.gz", (volume - 1024).astype(np.int16), AFFINE)
    dataset = open_dataset("phantom", two_scans)
    np.testing.assert_allclose(dataset.load("1").image, dataset.load("2").image, atol=1e-5)


# folders that are not complete


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("chaos_mri", "zenodo.org/records/3431873"),
        ("synapse_ct", "syn3193805"),
        ("cmr", "MS-CMRSeg"),
        ("phantom", "python -m fsmis phantom"),
    ],
)
def test_a_missing_or_empty_folder_says_where_the_data_is(
    tmp_path: Path, name: str, where: str
) -> None:
    for root in (tmp_path / "nowhere", tmp_path):
        message = refusal_of_folder(name, root)
        assert f"dataset.root={root}" in message
        assert where in message and "label_<id>.nii.gz" in message


def test_a_partial_download_does_not_shift_the_folds(two_scans: Path) -> None:
    message = refusal_of_folder("chaos_mri", two_scans)
    assert "2 scans (1, 2)" in message and "20" in message
    assert "dataset.fold_starts=5" in message


@pytest.mark.parametrize(("missing", "left"), [("label", "image"), ("image", "label")])
def test_a_scan_without_its_other_half(two_scans: Path, missing: str, left: str) -> None:
    (two_scans / f"{missing}_2.nii.gz").unlink()
    message = refusal_of_folder("phantom", two_scans)
    assert message.startswith(f"{two_scans / left}_2.nii.gz")
    assert f"no {missing}_2.nii.gz" in message


def test_one_scan_in_two_files(two_scans: Path) -> None:
    shutil.copy(two_scans / "image_1.nii.gz", two_scans / "image_01.nii.gz")
    assert "scan 1 is there twice" in refusal_of_folder("phantom", two_scans)


def test_a_name_without_number_is_not_dropped_in_silence(two_scans: Path) -> None:
    shutil.copy(two_scans / "image_1.nii.gz", two_scans / "image_patient3.nii.gz")
    assert "no label_patient3.nii.gz" in refusal_of_folder("phantom", two_scans)


@pytest.mark.parametrize("starts", [1, 0, 3, [0, 2], [0, 0, 2], [1, 2], [0, 2, 1], []])
def test_folds_that_cannot_be(two_scans: Path, starts: object) -> None:
    assert "dataset.fold_starts=" in refusal_of_folder("phantom", two_scans, fold_starts=starts)


# files that do not fit


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"organs": {"liver": 1, "RK": 257}}, "label id 257 is not in 1 to 255"),
        ({"organs": {"liver": 0}}, "label id 0 is not in 1 to 255"),
        ({"unscored_labels": [1001]}, "label id 1001 is not in 1 to 255"),
        ({"label_values": {7: 300}}, "label id 300 is not in 1 to 255"),
        ({"organs": {"liver": 1, "RK": 1}}, "two organs have the same label id"),
    ],
)
def test_label_ids_that_cannot_be(two_scans: Path, labels: dict[str, Any], reason: str) -> None:
    assert reason in refusal_of_folder("phantom", two_scans, **labels)


def test_an_unknown_scan(two_scans: Path) -> None:
    assert "no scan 7" in refusal_of_load(open_dataset("phantom", two_scans), "7")


def test_construction_reads_no_voxels_and_load_does(two_scans: Path) -> None:
    (two_scans / "image_1.nii.gz").write_bytes(b"")
    dataset = open_dataset("phantom", two_scans)
    assert "image_1.nii.gz: empty file" in refusal_of_load(dataset)
    assert dataset.load("2").id == "2"


def test_shapes_differ(two_scans: Path) -> None:
    write_volume(two_scans / "label_1.nii.gz", np.zeros((3, 8, 8), np.uint8), AFFINE)
    message = refusal_of_load(open_dataset("phantom", two_scans))
    assert "label_1.nii.gz: shape (3, 8, 8)" in message and "(2, 8, 8)" in message


@pytest.mark.parametrize("flip", [[-1, 1, 1, 1], [1, -1, 1, 1], [1, 1, -1, 1], [1, 1, 1.02, 1]])
def test_affines_differ(two_scans: Path, flip: list[float]) -> None:
    write_volume(two_scans / "label_1.nii.gz", label_of(1), AFFINE @ np.diag(flip))
    message = refusal_of_load(open_dataset("phantom", two_scans))
    assert "label_1.nii.gz: affine differs" in message and "mm" in message


def test_an_affine_that_differs_by_rounding_is_the_same(two_scans: Path) -> None:
    write_volume(two_scans / "label_1.nii.gz", label_of(1), AFFINE + 1e-5)
    assert open_dataset("phantom", two_scans).load("1").label is not None


def test_a_half_label_is_refused(two_scans: Path) -> None:
    write_scan(two_scans, 1, label_of(1, 0.5, dtype=np.float32))
    message = refusal_of_load(open_dataset("phantom", two_scans))
    assert "label_1.nii.gz: label value 0.5" in message and "nearest neighbour" in message


def test_raw_chaos_grey_values_are_unprepared(tmp_path: Path) -> None:
    for number in (1, 2):
        write_scan(tmp_path, number, label_of(63, 126, 189, 252))
    message = refusal_of_load(open_dataset("chaos_mri", tmp_path, fold_starts=2))
    assert "label_1.nii.gz: label value 63" in message
    assert "unprepared" in message and "python -m data_prep.chaos" in message


@pytest.mark.parametrize("value", [-1, 5, 14, 256, 300])
def test_a_label_of_no_organ(two_scans: Path, value: int) -> None:
    write_scan(two_scans, 1, label_of(1, value, dtype=np.int16))
    message = refusal_of_load(open_dataset("phantom", two_scans))
    assert f"label value {value} belongs to no organ" in message and "1 liver" in message


def test_raw_and_prepared_cmr_values_in_one_file(tmp_path: Path) -> None:
    for number in (1, 2):
        write_scan(tmp_path, number, label_of(200, 2, dtype=np.int16))
    message = refusal_of_load(open_dataset("cmr", tmp_path, fold_starts=2))
    assert "[0, 2, 200] mix" in message


def test_an_image_of_nan(two_scans: Path) -> None:
    write_volume(two_scans / "image_1.nii.gz", np.full((2, 8, 8), np.nan, np.float32), AFFINE)
    assert "128 of 128 voxels are NaN" in refusal_of_load(open_dataset("phantom", two_scans))


# fingerprint


def test_the_fingerprint_is_that_of_names_and_contents(two_scans: Path, tmp_path: Path) -> None:
    def fingerprint(root: Path) -> str:
        return open_dataset("phantom", root).fingerprint()

    copy = tmp_path / "copy"
    shutil.copytree(two_scans, copy, ignore=shutil.ignore_patterns("copy"))
    original = fingerprint(two_scans)
    assert fingerprint(copy) == original

    (copy / "notes.txt").write_text("not data")
    assert fingerprint(copy) == original
    write_volume(copy / "label_1.nii.gz", label_of(1, 2, 3), AFFINE)
    assert fingerprint(copy) != original

    shutil.copy(two_scans / "label_1.nii.gz", copy / "label_1.nii.gz")
    assert fingerprint(copy) == original
    for kind in ("image", "label"):
        (copy / f"{kind}_2.nii.gz").rename(copy / f"{kind}_3.nii.gz")
    assert fingerprint(copy) != original


def test_the_fingerprint_of_a_file_that_went_away(two_scans: Path) -> None:
    dataset = open_dataset("phantom", two_scans)
    (two_scans / "label_2.nii.gz").unlink()
    with pytest.raises(UserError, match=r"label_2\.nii\.gz: cannot be read"):
        dataset.fingerprint()
