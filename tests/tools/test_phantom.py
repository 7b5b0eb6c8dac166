"""The generated scans: the same for the same seed, prepared format, plausible anatomy."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fsmis.data.nifti import read_volume
from fsmis.errors import UserError
from fsmis.tools.phantom import generate, main, write_phantom


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def centre(label: np.ndarray, label_id: int) -> np.ndarray:
    """Middle (z, row, column) of an organ."""
    return np.argwhere(label == label_id).mean(axis=0)


@pytest.mark.parametrize("kind", ["abdomen", "cardiac"])
def test_patients_depend_on_seed_and_number_alone(kind: str) -> None:
    image, label, _ = generate(kind, seed=3, scan=2)
    again, same_label, _ = generate(kind, seed=3, scan=2)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, same_label)
    for other in (generate(kind, seed=3, scan=1), generate(kind, seed=4, scan=2)):
        assert not np.array_equal(label, other[1])


@pytest.mark.parametrize("seed", range(6))
def test_the_abdomen_is_a_prepared_chaos_scan(seed: int) -> None:
    image, label, affine = generate("abdomen", seed, scan=1)
    assert image.shape == label.shape and image.shape[1:] == (256, 256)
    assert image.dtype == np.int16 and image.min() >= 0
    np.testing.assert_allclose(np.abs(np.diag(affine)), [1.25, 1.25, 7.7, 1])
    liver, right_kidney, left_kidney, spleen = (centre(label, i) for i in (1, 2, 3, 4))
    assert max(liver[2], right_kidney[2]) < 128 < min(left_kidney[2], spleen[2])
    assert max(right_kidney[1], left_kidney[1]) < min(liver[1], 128)
    assert max(right_kidney[0], left_kidney[0]) < min(liver[0], spleen[0])
    volume = [(label == i).sum() for i in (1, 2, 3, 4)]
    assert max(volume) == volume[0] and min(volume) > 1000


@pytest.mark.parametrize("seed", range(6))
def test_the_heart_is_a_prepared_cmr_scan(seed: int) -> None:
    _, label, _ = generate("cardiac", seed, scan=1)
    assert set(np.unique(label)) == {0, 1, 2, 3}
    middle = label[len(label) // 2]
    pool = np.argwhere(middle == 2)
    row, column = pool.mean(axis=0).round().astype(int)
    # a ring: going out from the blood pool in any direction, the myocardium comes next
    for ray in (
        middle[row, column:],
        middle[row, column::-1],
        middle[row:, column],
        middle[row::-1, column],
    ):
        assert ray[np.flatnonzero(ray != 2)[0]] == 1
    assert np.argwhere(middle == 3).mean(axis=0)[1] < column


def test_the_command_writes_pairs_and_the_same_bytes_again(tmp_path: Path) -> None:
    options = ["--kind", "cardiac", "--scans", "2", "--out"]
    command = [sys.executable, "-m", "fsmis.tools.phantom"]
    subprocess.run([*command, *options, str(tmp_path / "a")], check=True)
    main([*options, str(tmp_path / "b")])
    assert list(files(tmp_path / "a")) == [
        "image_1.nii.gz",
        "image_2.nii.gz",
        "label_1.nii.gz",
        "label_2.nii.gz",
        "phantom.json",
    ]
    assert files(tmp_path / "a") == files(tmp_path / "b")
    label, spacing, _ = read_volume(tmp_path / "a" / "label_2.nii.gz")
    np.testing.assert_array_equal(label, generate("cardiac", 0, 2)[1])
    assert spacing == pytest.approx((7.99, 1.25, 1.25))


def test_scans_of_others_are_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "image_36.nii.gz").write_bytes(b"somebody's scan")
    with pytest.raises(UserError, match=r"image_36\.nii\.gz: not of a phantom"):
        write_phantom(tmp_path, scans=1)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["--kind", "abdomen"], "image_1.nii.gz"),
        (["--dataset", "synapse", "--size", "32"], "RawData/Training/img/img0001.nii.gz"),
        (["--dataset", "cmr", "--size", "32"], "patient1_C0.nii.gz"),
        (
            ["--dataset", "chaos", "--size", "32"],
            "CHAOS_Train_Sets/Train_Sets/MR/1/T2SPIR/DICOM_anon/IMG-0001-00001.dcm",
        ),
    ],
)
def test_real_scans_are_not_overwritten(
    tmp_path: Path, words: list[str], file: str, capsys
) -> None:
    real = tmp_path / "real" / file
    real.parent.mkdir(parents=True)
    real.write_bytes(b"somebody's scan")
    with pytest.raises(SystemExit) as stop:
        main([*words, "--scans", "1", "--out", str(tmp_path / "real")])
    assert stop.value.code == 2 and "not of a phantom" in capsys.readouterr().err
    assert real.read_bytes() == b"somebody's scan"
    for _ in range(2):  # its own are
        main([*words, "--scans", "1", "--out", str(tmp_path / "own")])


def test_fewer_scans_leave_no_others_behind(tmp_path: Path) -> None:
    write_phantom(tmp_path, scans=2)
    with pytest.raises(UserError, match=r"image_2\.nii\.gz: not of this phantom"):
        write_phantom(tmp_path, scans=1)


def test_no_scans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--scans=0"):
        write_phantom(tmp_path, scans=0)
    with pytest.raises(UserError, match="--seed=-1"):
        write_phantom(tmp_path, seed=-1)


def test_a_folder_that_cannot_be_made_is_one_line_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "fsmis.tools.phantom", "--out", str(tmp_path / "file" / "x")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


RAW_FILES = {
    "chaos": "CHAOS_Train_Sets/Train_Sets/MR/1/T2SPIR/DICOM_anon/IMG-0001-00001.dcm",
    "synapse": "RawData/Training/img/img0001.nii.gz",
    "cmr": "patient1_C0.nii.gz",
}


@pytest.mark.parametrize("dataset", RAW_FILES)
def test_raw_downloads_come_from_the_same_command(dataset: str, tmp_path: Path) -> None:
    main(["--dataset", dataset, "--scans", "1", "--size", "32", "--out", str(tmp_path)])
    assert (tmp_path / RAW_FILES[dataset]).is_file()


def test_prepared_or_raw_not_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--kind", "cardiac", "--dataset", "cmr"], ["--size", "64"]):
        with pytest.raises(SystemExit) as exit_:
            main([*options, "--out", str(tmp_path)])
        assert exit_.value.code == 2
    assert "--size=64: only for raw scans" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--scans", "0"], ["--scans", "21"], ["--size", "31"]])
def test_numbers_that_no_raw_download_has(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--dataset", "chaos", "--out", str(tmp_path), *options])
    assert exit_.value.code == 2
