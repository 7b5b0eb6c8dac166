"""The check before the first run: once for the same files, one line on what is wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fsmis.cli import CONF_DIR
from fsmis.data.dataset import Dataset
from fsmis.data.nifti import read_volume, write_mask, write_volume
from fsmis.data.verify import check_manifest, verify_once
from fsmis.errors import UserError
from fsmis.runs.variant import settings


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fsmis" / "verified"


def opened(root: Path, name: str = "cmr", **changes) -> Dataset:
    config = OmegaConf.load(CONF_DIR / "dataset" / f"{name}.yaml")
    return instantiate(config, root=root, fold_starts=2, **changes)


def relabel(path: Path, change) -> None:
    label, _, affine = read_volume(path)
    write_mask(path, change(np.array(label)), affine)


def refusal(dataset: Dataset) -> str:
    with pytest.raises(UserError) as caught:
        verify_once(dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_same_files_are_verified_once_wherever_they_lie(
    prepared_hearts, tmp_path, cache, capsys
):
    verify_once(opened(prepared_hearts))
    assert "verifying 2 scans of cmr, once" in capsys.readouterr().out
    assert len(list(cache.iterdir())) == 1
    verify_once(opened(prepared_hearts))
    verify_once(opened(shutil.copytree(prepared_hearts, tmp_path / "copy")))
    assert capsys.readouterr().out == ""


def test_other_files_and_other_expectations_are_verified_anew(hearts, capsys):
    verify_once(opened(hearts))
    relabel(hearts / "label_1.nii.gz", lambda label: np.where(label == 3, 0, label))
    verify_once(opened(hearts))
    verify_once(opened(hearts, expected={"flip_margin": 1.3}))
    verify_once(opened(hearts, expected={"flip_margin": 1.3}))
    assert capsys.readouterr().out.count("verifying") == 3


def test_without_a_cache_it_is_verified_each_time(prepared_hearts, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    verify_once(opened(prepared_hearts))
    verify_once(opened(prepared_hearts))
    assert capsys.readouterr().out.count("verifying") == 2


def test_a_scan_that_cannot_be_read_is_left_to_the_run(hearts, cache):
    (hearts / "image_2.nii.gz").write_bytes(b"")
    verify_once(opened(hearts))
    assert not cache.exists()


def big_pool(label: np.ndarray) -> np.ndarray:
    label[3:6, 20:230, 20:230] = 2
    return label


WRONG = {
    "organ_ml": (big_pool, ["LV-BP of", "outside 20 to 500 ml"]),
    "flip_margin": (lambda label: np.flip(label, 1), ["rows flipped"]),
}


@pytest.mark.parametrize("key", WRONG)
def test_what_is_not_expected_is_refused_or_accepted_on_demand(hearts, key):
    change, words = WRONG[key]
    relabel(hearts / "label_2.nii.gz", change)
    message = refusal(opened(hearts))
    for word in (f"{hearts / 'label_2.nii.gz'}: ", *words, f"dataset.expected.{key}=null"):
        assert word in message
    verify_once(opened(hearts, expected={key: None}))


def test_several_problems_are_all_told(hearts, capsys):
    for number in (1, 2):
        relabel(hearts / f"label_{number}.nii.gz", lambda label: label * 0)
    message = refusal(opened(hearts))
    assert "label_1.nii.gz: no scored organ is labelled" in message
    others = capsys.readouterr().err.split()
    assert sum("label_2.nii.gz:" in word for word in others) == 1


def test_another_spacing_is_refused(hearts):
    for path in hearts.glob("*.nii.gz"):
        array, _, affine = read_volume(path)
        write_volume(path, array, affine @ np.diag([1, 1, 1.1, 1]))
    message = refusal(opened(hearts))
    assert "voxels of 8.789 x 1.25 x 1.25 mm (z, y, x), not 7.99 x 1.25 x 1.25" in message


def test_a_ct_without_its_window_is_refused(tmp_path):
    label = np.ones((4, 40, 40), np.uint8)
    for number in (1, 2):
        image = np.linspace(-1000, 1500, label.size).reshape(label.shape)
        write_volume(tmp_path / f"image_{number}.nii.gz", image.astype(np.int16), np.eye(4))
        write_volume(tmp_path / f"label_{number}.nii.gz", label, np.eye(4))
    dataset = opened(tmp_path, "synapse_ct", expected={"organ_ml": None, "flip_margin": None})
    message = refusal(dataset)
    assert "intensities from -1000 to 1500, but -125 to 275 HU become 0 to 255" in message


def test_label_ids_of_another_dataset_are_refused(hearts):
    for number in (1, 2):
        relabel(hearts / f"label_{number}.nii.gz", lambda label: np.where(label == 3, 0, label))
    message = refusal(opened(hearts))
    assert f"{hearts}: no scan has RV, label id 3 of cmr" in message and "another" in message


def test_a_file_changed_since_its_preparation_is_refused(prepared_hearts, tmp_path):
    folder = shutil.copytree(prepared_hearts, tmp_path / "changed")
    relabel(folder / "label_1.nii.gz", lambda label: np.where(label == 3, 0, label))
    message = refusal(opened(folder))
    assert message.startswith(f"{folder / 'label_1.nii.gz'}: changed or removed")
    assert "remove manifest.json" in message


def test_a_scan_left_of_an_earlier_preparation_is_refused(prepared_hearts, tmp_path):
    folder = shutil.copytree(prepared_hearts, tmp_path / "mixed")
    for kind in ("image", "label"):
        shutil.copy(folder / f"{kind}_1.nii.gz", folder / f"{kind}_99.nii.gz")
    problems = check_manifest(folder)
    assert [problem.split(": ")[0] for problem in problems] == [
        f"{folder / kind}_99.nii.gz" for kind in ("image", "label")
    ]
    assert all("not prepared with the scans in manifest.json" in problem for problem in problems)


def test_the_published_chaos_scans_pass_in_their_read_only_folder(chaos_root, cache):
    config = OmegaConf.load(CONF_DIR / "dataset" / "chaos_mri.yaml")
    verify_once(instantiate(config, root=chaos_root))
    assert len(list(cache.iterdir())) == 1


def test_a_run_verifies_its_data_first(hearts, tmp_path, ask_run):
    relabel(hearts / "label_2.nii.gz", lambda label: np.flip(label, 1))
    options = ["dataset=cmr", f"dataset.root={hearts}", "dataset.fold_starts=2"]
    options += ["method=copy_mask", f"results_dir={tmp_path / 'runs'}"]
    done = ask_run(*options)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {hearts / 'label_2.nii.gz'}: the label fits its image")
    assert not (tmp_path / "runs").exists()


def test_an_unknown_expectation_fails(hearts):
    with pytest.raises(InstantiationException, match="spacings"):
        opened(hearts, expected={"spacings": [1]})


def test_expectations_do_not_change_what_a_run_is():
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("config", ["dataset=chaos_mri"])
    assert "organs.liver" in settings(config.dataset, "dataset")
    assert not [key for key in settings(config.dataset, "dataset") if "expected" in key]
