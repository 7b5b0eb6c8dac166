"""Nothing old or damaged counts: code that was edited, results that cannot be, organs left out."""

import importlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from fsmis.cli import CONF_DIR
from fsmis.data.nifti import read_volume
from fsmis.errors import UserError
from fsmis.runs.variant import configured
from fsmis.settings import require_replacing, with_selected_organs
from fsmis.tools.report import main as report
from fsmis.tools.status import show
from tests.test_run import copy_mask, data, run_here, small_root, states
from tests.test_source import forget

__all__ = ["data", "small_root"]  # fixtures

METHOD = """
from fsmis.methods.registration import CopyMask

from own_parts import change


class Own(CopyMask):
    def segment(self, episode):
        return {organ: change(mask) for organ, mask in super().segment(episode).items()}
"""
PARTS = "def change(mask):\n    return mask\n"


def test_edited_code_of_ones_own_is_computed_anew(
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    folder, results = tmp_path / "code", tmp_path / "runs"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def said(method: str) -> str:
        """What a run prints, which reads the code as a new process does."""
        for name in ("own", "own_parts", "elsewhere", "elsewhere.own", "elsewhere.own_parts"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        forget()
        capsys.readouterr()
        assert run_here(copy_mask(small_root, results, f"method._target_={method}")) == 0
        return capsys.readouterr().out

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # edits may be of one size and second
    (folder / "own.py").write_text(METHOD)
    (folder / "own_parts.py").write_text(PARTS)
    said("own.Own")
    (folder / "own.py").write_text(METHOD.replace("class", "# a comment\n\nclass"))
    assert "4/4 scans were done before" in said("own.Own")
    (folder / "own_parts.py").write_text(PARTS.replace("mask\n", "mask & False\n"))
    edited = said("own.Own")
    before, after = sorted(results.rglob("plan.json"), key=lambda path: path.stat().st_mtime)
    assert f"the code of Own has changed since variant {before.parent.name}: computing" in edited
    assert pd.read_csv(before.parent / "scores.csv")["dice"].mean() > 0.1
    assert pd.read_csv(after.parent / "scores.csv")["dice"].max() == 0
    # moved, it is the same
    (folder / "elsewhere").mkdir()
    for name in ("own.py", "own_parts.py"):
        (folder / name).rename(folder / "elsewhere" / name)
    (folder / "elsewhere/own.py").write_text(METHOD.replace("from own_parts", "from .own_parts"))
    assert "4/4 scans were done before" in said("elsewhere.own.Own")


def change(path: Path, **values: object) -> None:
    """Change values of a cell's first row, and leave its checksum."""
    record = json.loads(path.read_text())
    record["rows"][0].update(values)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("value", [7.5, "abc", 0.5])
def test_impossible_result_is_named_kept_and_computed_again(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture, value: object
) -> None:
    command = copy_mask(small_root, tmp_path)
    run_here(command)
    (folder,) = (path.parent for path in tmp_path.rglob("plan.json"))
    before = pd.read_csv(folder / "scores.csv").drop(columns="seconds")
    path = folder / "cells/fold0_scan1.json"
    change(path, dice=value)
    capsys.readouterr()
    assert show(tmp_path, None) == 3  # and the other commands go on
    assert "scan 1 of fold 0 missing: " in capsys.readouterr().out
    report([str(tmp_path)])
    assert run_here(command) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if str(path) in line]
    assert "kept as fold0_scan1.json.damaged-1, computed again" in line
    after = pd.read_csv(folder / "scores.csv").drop(columns="seconds")
    pd.testing.assert_frame_equal(before, after)
    kept = json.loads((folder / "cells/fold0_scan1.json.damaged-1").read_text())
    assert kept["rows"][0]["dice"] == value and len(list(folder.glob("cells/*.json"))) == 4


def test_impossible_table_is_one_line_and_the_run_mends_it(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = copy_mask(small_root, tmp_path)
    run_here(command)
    (path,) = tmp_path.rglob("scores.csv")
    content = path.read_text()
    path.write_text(content.replace("liver,", "liver,-", 1))
    with pytest.raises(SystemExit) as stop:
        report([str(tmp_path)])
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.count("\n") == 1
    assert f"{path}: row 1: n_slices=-" in errors and "run the same command again" in errors
    assert run_here(command) == 0 and path.read_text() == content


def test_some_organs_are_scored_and_the_labels_of_others_are_valid(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run_here(copy_mask(small_root, tmp_path / "all"))
    assert run_here(copy_mask(small_root, tmp_path / "some", "organs=[RK,liver]")) == 0
    assert "4/4 scans" in capsys.readouterr().out
    everything, some = (
        pd.read_csv(next((tmp_path / name).rglob("scores.csv"))) for name in ("all", "some")
    )
    assert some["organ"].unique().tolist() == ["liver", "RK"]
    expected = everything[everything["organ"].isin(["liver", "RK"])].reset_index(drop=True)
    pd.testing.assert_series_equal(some["dice"], expected["dice"])
    assert run_here(copy_mask(small_root, tmp_path / "some", "organs=[liver,RK]")) == 0
    assert "4/4 scans were done before" in capsys.readouterr().out
    assert states(tmp_path / "some") == ["done"] * 4
    labels, _, _ = read_volume(small_root / "label_1.nii.gz")
    assert set(labels.ravel()) == {0, 1, 2, 3, 4}


def composed(*overrides: str):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", list(overrides))


def test_selection_of_organs_is_a_dataset_of_them_alone() -> None:
    chosen = configured(composed("dataset=synapse_ct", "organs=[spleen,liver]"))
    replaced = ["~dataset.organs", "+dataset.organs={liver:6,spleen:1}"]
    labels = "dataset.unscored_labels=[2,3,4,5,7,8,9,10,11,12,13]"
    assert chosen == configured(composed("dataset=synapse_ct", *replaced, labels))
    everything = composed("organs=[LK,RK,liver,spleen]")
    assert configured(everything) == configured(composed())
    once = with_selected_organs(composed("organs=[LK]"))
    assert with_selected_organs(once) == once and once.dataset.organs == {"LK": 3}


REFUSED = [
    ["dataset.organs={liver:1}"],
    ["++dataset.organs={liver:1}"],
    ["dataset=cmr", "dataset.label_values={}"],
    ["segmenter=sam2_tiny", "segmenter.overrides={}"],
    ["dataset.expected.organ_ml={liver:[1,2]}"],
    ["dataset.expected={organ_ml:{liver:[1,2]}}"],
]
TAKEN = [
    ["dataset.organs={liver:4,RK:3,LK:2,spleen:1}"],
    ["~dataset.organs", "+dataset.organs={liver:1}"],
    ["+dataset.organs={pancreas:5}"],
    ["+dataset.label_values={200:1}"],  # there was none
    ["method.volume_pass={reach:0}"],
    ["method=panet", "method.training.schedule={steps:3}"],
    ["wandb={mode:offline}"],
    ["dataset.organs.liver=2"],
]


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_mapping_that_would_be_merged_is_refused(overrides: list[str]) -> None:
    with pytest.raises(UserError, match=r"would stay; .*in place of all: '~.*' '\+.*=\{...\}'$"):
        require_replacing(overrides, composed(*overrides))


@pytest.mark.parametrize("overrides", TAKEN, ids=" ".join)
def test_mapping_that_takes_effect_is_taken(overrides: list[str]) -> None:
    require_replacing(overrides, composed(*overrides))
