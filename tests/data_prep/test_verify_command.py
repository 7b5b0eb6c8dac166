"""The check of prepared folders: real scans pass, damaged ones are named."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.verify import main, verify
from fsmis.data.nifti import read_volume, write_mask, write_volume
from fsmis.errors import UserError


def problems(folder: Path) -> list[str]:
    findings, whole = verify(folder, "cmr", subset=True)
    return whole + [problem for finding in findings.values() for problem in finding.problems]


def test_the_published_chaos_scans_pass(chaos_root):
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.verify", str(chaos_root)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "20 scans, nothing wrong" in done.stdout and "LAS" in done.stdout


def test_phantoms_pass_as_a_part_alone(prepared_hearts, capsys):
    main([str(prepared_hearts), "--subset"])
    assert "2 scans, nothing wrong" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main([str(prepared_hearts)])
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "scans 3, 4, 5" in error and "complete the raw" in error


@pytest.mark.parametrize(("name", "axis"), [("slices", 0), ("rows", 1), ("columns", 2)])
def test_a_flipped_label_is_found(hearts, name, axis):
    label, _, affine = read_volume(hearts / "label_2.nii.gz")
    write_mask(hearts / "label_2.nii.gz", np.flip(label, axis), affine)
    found = problems(hearts)
    assert any(f"with its {name} flipped" in problem for problem in found)


def test_an_implausible_organ_is_found(hearts):
    label, _, affine = read_volume(hearts / "label_2.nii.gz")
    label = np.array(label)
    label[3:6, 20:230, 20:230] = 2
    write_mask(hearts / "label_2.nii.gz", label, affine)
    assert any("LV-BP of" in problem and "20 to 500 ml" in problem for problem in problems(hearts))


def test_an_absent_organ_is_shown(hearts, capsys):
    label, _, affine = read_volume(hearts / "label_2.nii.gz")
    write_mask(hearts / "label_2.nii.gz", np.where(label == 3, 0, label), affine)
    main([str(hearts), "--dataset", "cmr", "--subset"])
    assert "absent" in capsys.readouterr().out


def test_an_unlabelled_and_a_constant_scan_are_found(hearts):
    label, _, affine = read_volume(hearts / "label_1.nii.gz")
    write_mask(hearts / "label_1.nii.gz", label * 0, affine)
    image, _, affine = read_volume(hearts / "image_2.nii.gz")
    write_volume(hearts / "image_2.nii.gz", image * 0, affine)
    assert [problem.split(";")[0] for problem in problems(hearts)] == [
        f"{hearts / 'label_1.nii.gz'}: no scored organ is labelled",
        f"{hearts / 'image_2.nii.gz'}: every voxel is 0",
    ]


def test_a_bad_file_does_not_hide_the_others(hearts, capsys):
    (hearts / "image_1.nii.gz").write_bytes(b"")
    with pytest.raises(SystemExit) as exit_:
        main([str(hearts), "--dataset", "cmr", "--subset"])
    told = capsys.readouterr()
    assert exit_.value.code == 1 and told.err.startswith("scan 1: ") and "empty file" in told.err
    assert "bad" in told.out and "ok" in told.out


def test_files_that_changed_since_are_found(prepared_hearts, tmp_path):
    folder = shutil.copytree(prepared_hearts, tmp_path / "cmr")
    image, _, affine = read_volume(folder / "image_1.nii.gz")
    write_volume(folder / "image_1.nii.gz", image + np.float32(1), affine)
    found = problems(folder)
    assert len(found) == 1 and "image_1.nii.gz: changed or removed" in found[0]


def test_foreign_scans_are_found(hearts):
    for kind in ("image", "label"):
        shutil.copy(hearts / f"{kind}_1.nii.gz", hearts / f"{kind}_99.nii.gz")
    assert problems(hearts) == ["scans 99 are none of cmr; remove them"]


def test_a_folder_that_says_not_what_it_is(hearts, prepared_hearts, capsys):
    main([str(hearts)])
    assert "--dataset says otherwise: chaos_mri, synapse_ct, cmr" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no conf/dataset/hearts\.yaml; there are chaos_mri, cmr"):
        verify(hearts, "hearts")
    with pytest.raises(UserError, match="holds cmr, not chaos_mri"):
        verify(prepared_hearts, "chaos_mri")
    (hearts / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        verify(hearts)


def test_absent_data_says_what_to_get(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path / "none"), "--dataset", "synapse_ct"])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1
    for word in ("syn3193805", "RawData.zip", "data_prep.synapse", "DATA=phantom"):
        assert word in error
