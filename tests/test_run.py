"""The command line of a run, in processes of its own: resume, interruption, bad input, sweeps."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from fsmis.cli import CONF_DIR
from fsmis.methods.copy_mask import CopyMask
from fsmis.phantom import write_phantom
from fsmis.records import COLUMNS
from fsmis.run import execute

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


FILES = ["figures=worst", "worst_figures=1", "save_predictions=true"]


def command(*overrides: str | Path) -> list[str]:
    return [sys.executable, "-m", "fsmis.run", *map(str, overrides)]


def run(*overrides: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*overrides), capture_output=True, text=True, env=ENVIRONMENT)


def copy_mask(data: Path, results: Path, *more: str) -> list[str]:
    where = [f"dataset.root={data}", f"results_dir={results}"]
    return ["dataset=phantom", "method=copy_mask", *where, *more]


def run_here(overrides: list[str]) -> int:
    """A run in this process, with a configuration composed as the command line does it."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides, return_hydra_config=True)
    with open_dict(cfg):
        choices = dict(cfg.pop("hydra").runtime.choices)
    return execute(cfg, choices)


def cells(results: Path) -> dict[str, float]:
    """Time of change of every cell file, by name."""
    return {path.name: path.stat().st_mtime_ns for path in results.rglob("cells/*.json")}


def test_run_writes_what_design_promises(phantom_root: Path, tmp_path: Path) -> None:
    done = run(*copy_mask(phantom_root, tmp_path, *FILES))
    assert done.returncode == 0, done.stderr
    assert "4/4 scans" in done.stdout and "alpnet-3parts-organ_range" in done.stdout
    (folder,) = tmp_path.glob("phantom/copy_mask/*")
    scores = pd.read_csv(folder / "scores.csv")
    assert list(scores.columns) == COLUMNS
    assert len(scores) == 16
    assert set(scores["variant"]) == {folder.name}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["end"] >= provenance["start"]
    assert "fsmis.run" in provenance["command"] and provenance["packages"]["numpy"]
    assert (folder / "config.yaml").is_file() and (folder / "summary.md").is_file()
    assert len(list(folder.glob("figures/*.png"))) == 1
    prediction = nib.load(folder / "predictions/fold0_scan1.nii.gz")
    image = nib.load(phantom_root / "image_1.nii.gz")
    assert prediction.shape == image.shape
    np.testing.assert_array_equal(prediction.affine, image.affine)
    assert set(np.unique(prediction.dataobj)) == {0, 1, 2, 3, 4}
    # no litter: temporary files, Hydra's outputs/
    assert not list(tmp_path.rglob(".*"))


def test_same_command_computes_nothing_anew(
    phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    assert run_here(copy_mask(phantom_root, tmp_path, "protocol.fold=0")) == 0
    assert "partial: 2/4 scans, folds 0 of 2" in capsys.readouterr().out
    first = cells(tmp_path)
    assert run_here(copy_mask(phantom_root, tmp_path)) == 0
    both = cells(tmp_path)
    assert len(both) == 4 and first.items() <= both.items()
    monkeypatch.setattr(CopyMask, "segment", None)  # would fail if it were called
    next(tmp_path.rglob("scores.csv")).unlink()
    assert run_here(copy_mask(phantom_root, tmp_path)) == 0
    assert cells(tmp_path) == both
    assert "partial" not in capsys.readouterr().out.split("4/4 scans were done before")[1]
    assert len(pd.read_csv(next(tmp_path.rglob("scores.csv")))) == 16


def test_resume_gives_the_same_scores_as_one_go(phantom_root: Path, tmp_path: Path) -> None:
    run_here(copy_mask(phantom_root, tmp_path / "one"))
    run_here(copy_mask(phantom_root, tmp_path / "two", "protocol.fold=1"))
    run_here(copy_mask(phantom_root, tmp_path / "two"))
    one, two = (pd.read_csv(next((tmp_path / name).rglob("scores.csv"))) for name in ("one", "two"))
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_run_is_finished_by_the_same_command(
    tmp_path: Path, number: signal.Signals
) -> None:
    data, results = tmp_path / "data", tmp_path / "runs"
    write_phantom(data, scans=6)
    overrides = copy_mask(data, results, "dataset.fold_starts=3")
    process = subprocess.Popen(
        command(*overrides), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(cells(results)) < 2:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 143)
    if number == signal.SIGTERM:
        assert "the same command resumes" in errors and "Traceback" not in errors
    before = cells(results)
    states = {p.name: json.loads(p.read_text())["state"] for p in results.rglob("cells/*.json")}
    kept = {name: changed for name, changed in before.items() if states[name] == "done"}
    assert 2 <= len(kept) < 6
    assert run_here(overrides) == 0
    assert kept.items() <= cells(results).items()
    assert len(pd.read_csv(next(results.rglob("scores.csv")))) == 24


def test_failing_scan_is_recorded_and_the_others_go_on(
    phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    segment = CopyMask.segment

    def fail_once(self, episode):
        if episode.query.id == "2":
            raise RuntimeError("CUDA out of memory")
        return segment(self, episode)

    monkeypatch.setattr(CopyMask, "segment", fail_once)
    assert run_here(copy_mask(phantom_root, tmp_path)) == 1
    shown = capsys.readouterr()
    assert "partial: 3/4 scans (1 failed)" in shown.out
    assert "scan 2 of fold 0 failed: RuntimeError: CUDA out of memory" in shown.err
    record = json.loads(next(tmp_path.rglob("fold0_scan2.json")).read_text())
    assert record["state"] == "failed" and "out of memory" in record["reason"]
    monkeypatch.setattr(CopyMask, "segment", segment)
    assert run_here(copy_mask(phantom_root, tmp_path)) == 0
    monkeypatch.setattr(CopyMask, "segment", fail_once)
    assert run_here(copy_mask(phantom_root, tmp_path)) == 0  # all is done
    assert run_here(copy_mask(phantom_root, tmp_path, "force=true")) == 1
    assert len(pd.read_csv(next(tmp_path.rglob("scores.csv")))) == 12


def test_changed_data_is_computed_anew_and_the_reason_said(tmp_path: Path, capsys) -> None:
    data = tmp_path / "data"
    write_phantom(data, scans=2)
    run_here(copy_mask(data, tmp_path / "runs"))
    write_phantom(data, scans=2, seed=1)
    run_here(copy_mask(data, tmp_path / "runs"))
    assert "the data files have changed since variant" in capsys.readouterr().out
    assert len(list((tmp_path / "runs").rglob("scores.csv"))) == 2


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["dataset.root={tmp}/nowhere"], 2, "error: dataset.root={tmp}/nowhere: no such folder"),
        (["results_dir={tmp}/file/runs"], 2, "error: results_dir={tmp}/file/runs: {tmp}/file is"),
        (["seed=0,1", "results_dir={tmp}/file/runs", "-m"], 2, "error: results_dir={tmp}/file/run"),
        (["protocol.parts=3"], 1, "Could not override 'protocol.parts'"),
    ],
)
def test_bad_input_is_one_line(
    phantom_root: Path, tmp_path: Path, overrides: list[str], code: int, message: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    results = tmp_path / "runs"
    more = [override.format(tmp=tmp_path) for override in overrides]
    done = run(*copy_mask(phantom_root, results), *more)
    assert done.returncode == code
    assert message.format(tmp=tmp_path) in done.stderr and "Traceback" not in done.stderr
    if code == 2:
        assert len(done.stderr.splitlines()) == 1
    assert not results.exists()


def test_sweep_goes_on_after_a_bad_job(phantom_root: Path, tmp_path: Path) -> None:
    overrides = copy_mask(phantom_root, tmp_path, "protocol.fold=7,0,1")
    done = run("-m", *overrides)
    assert done.returncode == 1
    assert "error: protocol.fold=7" in done.stderr and "Traceback" not in done.stderr
    assert "1 of 3 jobs failed" in done.stderr and "protocol.fold=7" in done.stderr
    assert len(cells(tmp_path)) == 4


def test_floor_on_the_real_scans(chaos_root: Path, tmp_path: Path) -> None:
    where = ["dataset=chaos_mri", f"dataset.root={chaos_root}", f"results_dir={tmp_path}"]
    assert run_here([*where, "method=copy_mask", "protocol=alpnet"]) == 0
    assert len(pd.read_csv(next(tmp_path.rglob("scores.csv")))) == 80
    summary = pd.read_csv(next(tmp_path.rglob("summary.csv"))).set_index("organ")
    assert summary.loc["mean", "dice"] == pytest.approx(43.93, abs=0.005)
