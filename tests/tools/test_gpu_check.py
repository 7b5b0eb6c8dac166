"""The GPU check without a GPU, small: what it measures is right, and what fails is seen."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from fsmis.tools import gpu_check, gpu_numbers
from fsmis.tools.gpu_check import checks, main, perform
from fsmis.tools.gpu_numbers import FAILED, PASSED, SKIPPED, Row, Setting
from tests.test_run import small_root

__all__ = ["small_root"]  # a fixture
SMALL = ("segmenter.image_size=32", "threads=1")


@pytest.fixture(scope="module")
def setting(small_root, tmp_path_factory) -> Setting:
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "scans").mkdir()
    for scan in (1, 2, 3):
        for path in small_root.glob(f"*_{scan}.nii.gz"):
            shutil.copy(path, folder / "scans")
    return Setting("cpu", folder, "sam2_mini", 64, images=2, overrides=SMALL)


def held(row: Row) -> str:
    assert row.value, row
    return row.outcome


def test_float32_is_compared_within_its_bound(setting, monkeypatch):
    assert held(gpu_numbers.same_logits(setting, "sam2_mini")) == PASSED
    exact = gpu_numbers.logits
    monkeypatch.setattr(gpu_numbers, "logits", lambda *args: exact(*args) + 3e-4 * off.pop())
    off = [0, 1]
    assert held(gpu_numbers.same_logits(setting, "sam2_mini")) == FAILED


def test_bfloat16_changes_masks_a_little(setting, monkeypatch):
    single, half = (
        gpu_numbers.logits(setting, "sam2_mini", "cpu", precision)
        for precision in ("float32", "bfloat16")
    )
    assert np.abs(single - half).max() > 100 * gpu_numbers.LOGITS  # it is another precision
    assert (single > 0).any() and (single < 0).any()
    assert held(gpu_numbers.same_masks(setting, "sam2_mini")) == PASSED
    monkeypatch.setattr(
        gpu_numbers, "logits", lambda *args: single if args[3] == "float32" else -half
    )
    assert held(gpu_numbers.same_masks(setting, "sam2_mini")) == FAILED


def test_speeds_count_what_they_name(setting, monkeypatch):
    monkeypatch.setattr(gpu_numbers, "timed", lambda setting, work: work() is None or 0.5)
    segmenter = gpu_numbers.build(setting, "sam2_mini", "cpu")
    assert gpu_numbers.speed(setting, "sam2_mini").value.startswith(
        f"4 images, {min(segmenter.batch_size, 8) * 2} rows, 8 memories a second"
    )
    assert gpu_numbers.pairs(setting).value == "32 pairs a second"


def test_a_scan_out_of_memory_leaves_the_others(setting):
    row = gpu_check.out_of_memory(setting)
    assert row.value == "1 line, 2 of 3 scans scored" and row.outcome == PASSED


def test_two_jobs_at_a_time(setting):
    assert held(gpu_check.two_jobs(setting)) == PASSED
    assert len(gpu_check.scores(setting, "jobs")) == 2


def test_runs_that_fail_are_told(setting):
    broken = Setting("cpu", setting.folder / "broken", overrides=("segmenter.batch_size=0",))
    row = gpu_check.same_dice(broken)
    assert row.outcome == FAILED and "batch_size=0" in row.value


def test_without_a_gpu_what_needs_one_is_skipped_by_name(tmp_path, monkeypatch, capsys):
    for name in ("speed", "pairs", "out_of_memory", "two_jobs", "installation"):
        monkeypatch.setattr(gpu_check, name, lambda setting, name="": Row("", "measured"))
    out = tmp_path / "made" / "gpu.md"
    main(["--device", "cpu", "--out", str(out)])
    lines = [line for line in out.read_text().splitlines() if line.count("|") == 6]
    assert len(lines) == 2 + len(checks(Setting("cpu", tmp_path)))
    skipped = [line.split(" | ")[0].strip("| ") for line in lines if "needs a GPU" in line]
    assert "default method on both devices" in skipped and "tests marked gpu" in skipped
    assert all(f"skipped: {name}" in capsys.readouterr().out for name in skipped[:1])

    def broken(setting: Setting) -> Row:
        raise RuntimeError("no kernel image\nwith a long story")

    monkeypatch.setattr(gpu_check, "pairs", broken)
    with pytest.raises(SystemExit) as end:
        main(["--device", "cpu", "--out", str(out)])
    assert end.value.code == 1 and "RuntimeError: no kernel image | " in out.read_text()
    assert "a long story" not in out.read_text()


def test_an_error_fails_its_check_alone(setting):
    row = perform("name", lambda _: 1 / 0, False, setting)  # type: ignore[arg-type,return-value]
    assert row.outcome == FAILED and row.name == "name" and "ZeroDivisionError" in row.value
    assert perform("name", lambda _: 1 / 0, True, setting).outcome == SKIPPED  # type: ignore


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_does(tmp_path):
    setting = Setting("cuda", Path(tmp_path), "sam2.1_tiny", 64, images=2)
    for name in ("sam2_mini", "sam2.1_tiny"):
        assert gpu_numbers.same_logits(setting, name).outcome == PASSED
