"""Reading and writing one volume, and what a damaged file says."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsmis.data.nifti import read_volume, write_mask, write_volume
from fsmis.errors import UserError

AFFINE = np.diag([-1.25, 1.25, 7.7, 1.0])
VOLUME = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)


def refusal(path: Path) -> str:
    """What the user reads: one line that names the file."""
    with pytest.raises(UserError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "Zürich 1 (a).nii.gz"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    write_volume(tmp_path / name, VOLUME, AFFINE)
    array, spacing, affine = read_volume(tmp_path / name)
    np.testing.assert_array_equal(array, VOLUME)
    assert array.dtype == np.int16
    assert spacing == pytest.approx((7.7, 1.25, 1.25))
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_axes_are_turned_once(tmp_path: Path) -> None:
    stored = np.zeros((5, 4, 3), np.uint8)
    stored[1, 2, 0] = 1  # x, y, z
    nib.save(nib.Nifti1Image(stored, AFFINE), tmp_path / "scan.nii.gz")
    array, _, _ = read_volume(tmp_path / "scan.nii.gz")
    assert array.shape == (3, 4, 5)
    assert array[0, 2, 1] == 1


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 1, 1)])
def test_one_slice_and_singleton_axes_are_one_volume(tmp_path: Path, shape: tuple) -> None:
    nib.save(nib.Nifti1Image(np.ones(shape, np.float32), AFFINE), tmp_path / "scan.nii.gz")
    array, spacing, _ = read_volume(tmp_path / "scan.nii.gz")
    assert array.shape == (1, 4, 5)
    assert spacing == pytest.approx((7.7, 1.25, 1.25))


def test_a_mask_is_stored_as_uint8(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.nii.gz", VOLUME > 30, AFFINE)
    array, _, _ = read_volume(tmp_path / "mask.nii.gz")
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, VOLUME > 30)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/mask\.nii\.gz: cannot be written"):
        write_mask(tmp_path / "file" / "mask.nii.gz", VOLUME, AFFINE)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_the_same_array_is_the_same_bytes(tmp_path: Path, name: str) -> None:
    for folder in ("a", "b"):
        write_volume(tmp_path / folder / name, VOLUME, AFFINE)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "mask.nii.gz"
    write_mask(path, VOLUME > 0, AFFINE)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_mask(path, VOLUME < 0, AFFINE)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "scan.nii.gz")


def test_zero_bytes(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    path.touch()
    assert "0 bytes" in refusal(path)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
@pytest.mark.parametrize("kept", [1, 0.5, 0.9])
def test_truncated(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 1000, (8, 32, 32)).astype(np.int16)
    write_volume(path, noise, AFFINE)
    content = path.read_bytes()
    path.write_bytes(content[: 3 if kept == 1 else int(kept * len(content))])
    assert "again" in refusal(path) or "not a NIfTI" in refusal(path)


def test_plain_data_named_gz(tmp_path: Path) -> None:
    write_volume(tmp_path / "scan.nii", VOLUME, AFFINE)
    path = tmp_path / "scan.nii.gz"
    (tmp_path / "scan.nii").rename(path)
    assert "rename it to .nii" in refusal(path)


def test_gzip_data_named_nii(tmp_path: Path) -> None:
    write_volume(tmp_path / "scan.nii.gz", VOLUME, AFFINE)
    path = tmp_path / "scan.nii"
    (tmp_path / "scan.nii.gz").rename(path)
    assert "rename it to .nii.gz" in refusal(path)


def test_another_format(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    path.write_bytes(b"\x89PNG")
    assert "must end in .nii" in refusal(path)


def test_gzip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(b"<html>quota exceeded</html>" * 50))
    assert "not a NIfTI file" in refusal(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    volume = VOLUME.astype(np.float32)
    volume[0, 0, :2] = value
    path = tmp_path / "scan.nii.gz"
    write_volume(path, volume, AFFINE)
    assert "2 of 60 voxels are NaN or infinite" in refusal(path)


def test_several_volumes_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((5, 4, 3, 2), np.int16), AFFINE), path)
    assert "(5, 4, 3, 2)" in refusal(path)


def test_colour(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    rgb = np.zeros((5, 4, 3), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(rgb, AFFINE), path)
    assert "not grey values" in refusal(path)


def test_broken_qform(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    image = nib.Nifti1Image(np.zeros((5, 4, 3), np.int16), AFFINE)
    image.header.set_qform(AFFINE, code=1)
    image.header.set_sform(None, code=0)
    image.header["quatern_b"] = 0.9
    image.header["quatern_c"] = 0.9
    path.write_bytes(image.header.binaryblock + bytes(4) + bytes(5 * 4 * 3 * 2))
    assert "w2 should be positive" in refusal(path)


def test_voxels_without_size(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    image = nib.Nifti1Image(VOLUME.T, np.eye(4))
    image.header["srow_z"] = 0
    path.write_bytes(gzip.compress(image.header.binaryblock + bytes(4) + VOLUME.tobytes()))
    assert "voxel size 1 x 1 x 0 mm" in refusal(path)


@settings(max_examples=500, deadline=None)
@given(offset=st.integers(0, 351), value=st.integers(0, 255), suffix=st.sampled_from(["", ".gz"]))
def test_no_damaged_header_byte_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, offset: int, value: int, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged.nii{suffix}"
    image = nib.Nifti1Image(VOLUME.T, AFFINE)
    content = bytearray(image.to_bytes())
    content[offset] = value
    path.write_bytes(gzip.compress(bytes(content)) if suffix else bytes(content))
    try:
        array, spacing, affine = read_volume(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert array.ndim == 3 and np.isfinite(array).all()
        assert min(spacing) > 0 and np.isfinite(affine).all()
