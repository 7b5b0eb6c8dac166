"""What fsmis.tools.status says of runs that are done, running, failed, killed and not begun."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fsmis.errors import UserError
from fsmis.files import SILENT_S, author, beating, lost
from fsmis.runs.records import PLAN, Cell, RunFolder
from fsmis.tools.status import main, show, state_of
from tests.runs.test_records import row

CELLS = [Cell(0, "3", "1"), Cell(0, "3", "2"), Cell(1, "1", "3"), Cell(1, "1", "4")]
SINCE = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of two folds, nothing of it done."""
    folder = RunFolder(tmp_path / "runs/chaos_mri/augment_match_prompt/0123456789ab")
    folder.write_plan(dict.fromkeys(PLAN, "x") | {"organs": [], "cells": CELLS})
    return folder


def finish(run: RunFolder, *cells: Cell) -> None:
    for cell in cells:
        run.finish(cell, [row(cell)])


def gone() -> int:
    """Id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_states_and_exit_code_of_each(run: RunFolder, tmp_path: Path, capsys) -> None:
    root = tmp_path / "runs"
    assert show(root, None) == 3 and "0/4" in capsys.readouterr().out
    finish(run, *CELLS[:3])
    run.begin(CELLS[3], SINCE)
    assert show(root, None) == 3
    assert f"scan 4 of fold 1 running: process {os.getpid()} on" in capsys.readouterr().out
    assert show(root, [0]) == 0 and "2/2" in capsys.readouterr().out
    run.fail(CELLS[3], "interrupted", "SIGTERM")
    assert show(root, None) == 1
    assert "scan 4 of fold 1 stopped: interrupted by SIGTERM" in capsys.readouterr().out
    run.fail(CELLS[3], "failed", "RuntimeError: CUDA out of memory")
    assert show(root, None) == 1
    assert "scan 4 of fold 1 failed: RuntimeError: CUDA out of" in capsys.readouterr().out
    finish(run, CELLS[3])
    assert show(root, None) == 0


def test_table_fits_80_columns(run: RunFolder) -> None:
    finish(run, *CELLS[:1])
    command = [sys.executable, "-m", "fsmis.tools.status", run.path.parents[2]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3 and done.stderr == ""
    header, row = done.stdout.splitlines()
    assert header.split() == ["run", "done", "running", "failed", "stopped", "missing"]
    assert row.split() == ["chaos_mri/augment_match_prompt/0123456789ab", "1/4", "·", "·", "·", "3"]
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_killed_process_is_told_from_a_living_one(run: RunFolder) -> None:
    path = run.begin(CELLS[0], SINCE)
    assert state_of(run, CELLS[0])[0] == "running"
    here = {"state": "running", "since": SINCE, "host": socket.gethostname(), "pid": gone()}
    run._write(CELLS[0], here)
    state, note = state_of(run, CELLS[0])
    assert state == "stopped" and note.startswith(f"process {here['pid']} is gone")
    run._write(CELLS[0], here | {"host": "elsewhere"})  # its processes cannot be seen from here
    assert state_of(run, CELLS[0])[0] == "running"
    long_ago = path.stat().st_mtime - 2 * SILENT_S
    os.utime(path, (long_ago, long_ago))
    state, note = state_of(run, CELLS[0])
    assert state == "stopped" and "on elsewhere silent for" in note


def test_silent_process_on_this_machine_is_lost_too(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.touch()
    assert lost(path, author()) is None
    os.utime(path, (0, 0))
    assert "silent for" in str(lost(path, author()))
    assert lost(tmp_path / "just finished", author()) is None


def test_beats_keep_a_record_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsmis.files.BEAT_S", 0.01)
    path = tmp_path / "record"
    path.touch()
    os.utime(path, (0, 0))
    with beating(path):
        while lost(path, author()) is not None:
            pass  # ends with the first beat
    os.utime(path, (0, 0))
    assert lost(path, author()) is not None  # none after the block


def test_nothing_is_written(run: RunFolder, tmp_path: Path) -> None:
    run.begin(CELLS[0], SINCE)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    show(tmp_path, None)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_runs_in_linked_folders_are_seen(run: RunFolder, tmp_path: Path, capsys) -> None:
    finish(run, *CELLS)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "chaos_mri").symlink_to(tmp_path / "runs/chaos_mri")
    (run.path / "around").symlink_to(tmp_path / "runs")
    assert show(tmp_path / "here", None) == 0
    assert "4/4" in capsys.readouterr().out
    with pytest.raises(UserError, match="--fold 9: no such fold"):
        show(tmp_path / "here", [9])


def test_no_run_and_a_damaged_one_are_named(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        with pytest.raises(UserError, match=f"{folder}: no run "):
            show(tmp_path / folder, None)
    (run.path / "plan.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["fsmis.tools.status", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.count("\n") == 1 and "plan.json: damaged" in errors
