"""Label maps made elsewhere: whatever their geometry, they score as what they are on the scan."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hydra.errors import InstantiationException
from nibabel.processing import resample_from_to

from fsmis.data.dataset import Dataset
from fsmis.data.nifti import read_volume, write_mask
from fsmis.errors import ScanError, UserError
from fsmis.methods.predictions import Predictions
from tests.test_run import copy_mask, run_here, small_root

__all__ = ["small_root"]  # a fixture

ORGANS = {"liver": 1, "RK": 2, "LK": 3, "spleen": 4}


@pytest.fixture
def maps(small_root: Path, tmp_path: Path) -> Path:
    """The true label maps, as a folder of predictions."""
    folder = tmp_path / "maps"
    folder.mkdir()
    for path in small_root.glob("label_*.nii.gz"):
        shutil.copy(path, folder / path.name.replace("label_", "case_00"))
    return folder


def predictions(maps: Path, small_root: Path, results: Path, *more: str) -> list[str]:
    where = [f"dataset.root={small_root}", f"results_dir={results}"]
    return ["dataset=phantom", "method=predictions", f"predictions={maps}", *where, *more]


def scores(results: Path) -> pd.DataFrame:
    return pd.concat(map(pd.read_csv, results.rglob("scores.csv")))


def turned(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    return image.as_reoriented(turn)


def padded(image: nib.Nifti1Image) -> nib.Nifti1Image:
    affine = image.affine @ nib.affines.from_matvec(np.eye(3), [-5, -3, -1])
    return nib.Nifti1Image(np.pad(image.dataobj, [(5, 4), (3, 2), (1, 6)]), affine)


def finer(image: nib.Nifti1Image) -> nib.Nifti1Image:
    # three voxels of the map lie in one of the scan, the middle one on its centre
    affine = image.affine @ nib.affines.from_matvec(np.eye(3) / 3, [-1 / 3] * 3)
    repeated = np.kron(image.dataobj, np.ones((3, 3, 3), np.uint8))
    return nib.Nifti1Image(repeated, affine)


def oblique(image: nib.Nifti1Image) -> nib.Nifti1Image:
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    affine = image.affine @ nib.affines.from_matvec(np.vstack([turn, [0, 0, 1]]) / 4, [-8, -40, 0])
    shape = np.array(image.shape) * [8, 8, 4]
    return resample_from_to(image, (tuple(shape), affine), order=0, mode="constant")


GEOMETRIES = [
    lambda image: image,
    lambda image: turned(image, "RAS"),
    lambda image: turned(image, "PIR"),
    padded,
    finer,
    lambda image: finer(turned(padded(image), "SPL")),
]


@pytest.mark.parametrize("change", GEOMETRIES)
def test_a_map_of_any_geometry_is_laid_on_the_scan(
    change: Callable, maps: Path, small_root: Path
) -> None:
    path = maps / "case_001.nii.gz"
    truth, _, _ = read_volume(path)
    nib.save(change(nib.load(path)), path)
    found = on_scan(maps, small_root)
    np.testing.assert_array_equal(found, truth)


def test_an_oblique_map_is_laid_on_the_scan(maps: Path, small_root: Path) -> None:
    path = maps / "case_001.nii.gz"
    truth, _, _ = read_volume(path)
    nib.save(oblique(nib.load(path)), path)
    found = on_scan(maps, small_root)
    assert (found == truth).mean() > 0.99 and (found[truth > 0] == truth[truth > 0]).mean() > 0.95


def on_scan(maps: Path, root: Path, **arguments) -> np.ndarray:
    """Labels of the map of scan 1 on its voxels, 0 beyond the map."""
    method = Predictions(str(maps), ORGANS, [], outside=0.01, **arguments)
    dataset = Dataset("phantom", root, ORGANS, [], {}, 0.01, [0.5, 99.5], 2, "")
    labels = method._on_scan(method.file_of("1", 0), dataset.load("1"))
    return np.maximum(labels, 0)


def moved(image: nib.Nifti1Image, by: list[float]) -> nib.Nifti1Image:
    affine = image.affine @ nib.affines.from_matvec(np.eye(3), by)
    return nib.Nifti1Image(np.asarray(image.dataobj), affine)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda image: moved(image, [0, 0, 3]), r"case_001.*: \d+ % of scan 1 lie beyond it"),
        (lambda image: nib.Nifti1Image(np.asarray(image.dataobj), np.eye(4)), "% of scan 1"),
        (lambda image: image.slicer[:, :, 2:], "% of scan 1"),
        (
            lambda image: nib.Nifti1Image(np.asarray(image.dataobj) * 5, image.affine),
            "value 5 is no label .*set method.labels",
        ),
        (
            lambda image: nib.Nifti1Image(np.asarray(image.dataobj) * 0.5, image.affine),
            "value 0.5 is no label",
        ),
    ],
)
def test_a_map_that_does_not_fit_is_refused(
    change: Callable, reason: str, maps: Path, small_root: Path
) -> None:
    path = maps / "case_001.nii.gz"
    nib.save(change(nib.load(path)), path)
    with pytest.raises(UserError, match=reason):
        on_scan(maps, small_root)


def test_names_end_with_the_id(tmp_path: Path) -> None:
    for name in ("fold0_scan3", "fold1_scan3", "nnUNet_013", "pat2", "my pat2", "a_image_5"):
        write_mask(tmp_path / f"{name}.nii.gz", np.zeros((1, 2, 2)), np.eye(4))
    method = Predictions(str(tmp_path), ORGANS, [], outside=0)
    assert method.file_of("3", 1).name == "fold1_scan3.nii.gz"
    assert method.file_of("13", 1).name == "nnUNet_013.nii.gz"
    assert method.file_of("5", 0).name == "a_image_5.nii.gz"
    # those of other folds were made from other supports
    with pytest.raises(ScanError, match="no label map of scan 3 in fold 2; add one"):
        method.file_of("3", 2)
    with pytest.raises(ScanError, match=r"my pat2.nii.gz, pat2.nii.gz are all of scan pat2"):
        method.file_of("pat2", 0)
    for absent in ("1", "at2", "03x"):
        with pytest.raises(ScanError, match=f"no label map of scan {absent}"):
            method.file_of(absent, 0)


def test_predictions_stand_in_the_tables_under_a_name(
    maps: Path, small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results = tmp_path / "runs"
    assert run_here(predictions(maps, small_root, results, "known_as=nnU-Net")) == 0
    assert run_here(copy_mask(small_root, results)) == 0
    found = scores(results).groupby("method")["dice"].mean()
    assert found["nnU-Net"] == 1 and 0.1 < found["copy_mask"] < 0.95
    # a map that changed is scored anew
    path = maps / "case_002.nii.gz"
    labels, _, affine = read_volume(path)
    write_mask(path, np.where(labels == 1, 0, labels), affine)
    capsys.readouterr()
    assert run_here(predictions(maps, small_root, results, "known_as=nnU-Net")) == 0
    assert "computing anew" in capsys.readouterr().out
    runs = sorted((results / "phantom/nnU-Net").iterdir(), key=lambda run: run.stat().st_mtime)
    dice = pd.read_csv(runs[-1] / "scores.csv").set_index(["query_scan", "organ"])["dice"]
    assert len(runs) == 2 and dice[2, "liver"] == 0 and dice.drop(index=(2, "liver")).eq(1).all()
    digests = json.loads((runs[-1] / "provenance.json").read_text())["weights"]
    assert list(digests) == [str(maps)]


def test_predictions_of_a_run_score_as_the_run(small_root: Path, tmp_path: Path) -> None:
    command = [*copy_mask(small_root, tmp_path / "own"), "organs=[liver]", "save_predictions=true"]
    assert run_here(command) == 0
    (folder,) = (tmp_path / "own").rglob("predictions")
    assert run_here(predictions(folder, small_root, tmp_path / "again", "organs=[liver]")) == 0
    kept = ["fold", "query_scan", "organ", "n_slices", "tp", "fp", "fn", "dice", "hd95_mm"]
    pd.testing.assert_frame_equal(scores(tmp_path / "again")[kept], scores(tmp_path / "own")[kept])


def test_what_is_missing_is_said_in_a_line(
    maps: Path, small_root: Path, tmp_path: Path, ask_run
) -> None:
    (maps / "case_003.nii.gz").unlink()
    done = ask_run(*predictions(maps, small_root, tmp_path / "runs"))
    assert done.returncode == 1 and "no label map of scan 3" in done.stdout + done.stderr
    assert len(scores(tmp_path / "runs")) == 12
    for folder, reason in (
        (tmp_path / "no", "no such folder"),
        (tmp_path / "runs", "no NIfTI file"),
        ("null", "predictions=DIR"),
    ):
        with pytest.raises(InstantiationException, match=reason) as error:
            run_here(predictions(folder, small_root, tmp_path / "more"))
        assert isinstance(error.value.__cause__, UserError)
