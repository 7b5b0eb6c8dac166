"""Data that several test files read."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from data_prep.cli import load_source
from data_prep.prepare import prepare
from fsmis.run import command
from fsmis.settings import limit_threads
from fsmis.tools.phantom import write_phantom, write_raw

# runs of tests leave no record but where a test is about it
os.environ["WANDB_MODE"] = "disabled"

if "PYTEST_XDIST_WORKER" in os.environ:  # the other cores are for the other workers
    limit_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked ``gpu`` needs one."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA here")


class Answer(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Answer]:
    """A command line in this process: its function, and the words."""

    def asked(command: Callable[[], object], *words: object) -> Answer:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        code = 0
        try:
            command()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Answer(code, *capsys.readouterr())

    return asked


@pytest.fixture
def ask_run(ask: Callable[..., Answer]) -> Callable[..., Answer]:
    """``python -m fsmis run`` in this process, without logging, which would outlive it."""
    return partial(ask, command, "hydra/job_logging=none")


@pytest.fixture(scope="session")
def shared_root() -> Path:
    """Folder of the real data: ``$FSMIS_SHARED``, or ``../shared`` beside the repository."""
    root = Path(os.environ.get("FSMIS_SHARED", REPOSITORY.parent / "shared"))
    if not root.is_dir():
        pytest.skip(f"no real data: {root} is not there; set FSMIS_SHARED")
    return root


@pytest.fixture(scope="session")
def chaos_root(shared_root: Path) -> Path:
    """The 20 prepared CHAOS T2 scans."""
    root = shared_root / "data" / "chaos_t2"
    if not root.is_dir():
        pytest.skip(f"no real CHAOS scans: {root} is not there")
    return root


@pytest.fixture(scope="session")
def chaos_golden(shared_root: Path) -> dict:
    """Folds, support slices and floors of each variant on the real CHAOS labels."""
    path = shared_root / "docs" / "protocol_golden_chaos.json"
    if not path.is_file():
        pytest.skip(f"no reference of the protocol: {path} is not there")
    return json.loads(path.read_text())["CHAOST2"]


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four generated abdominal scans; read only."""
    root = tmp_path_factory.mktemp("phantom")
    write_phantom(root)
    return root


@pytest.fixture(scope="session")
def prepared_hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prepared hearts with their manifest; read only."""
    root = tmp_path_factory.mktemp("cmr")
    write_raw("cmr", root / "raw", scans=2, size=64)
    prepare(load_source("cmr"), root / "raw", root / "out", 1, lambda scan_id, outcome: None)
    return root / "out"


@pytest.fixture
def hearts(prepared_hearts: Path, tmp_path: Path) -> Path:
    """A copy without manifest, so that its files may differ."""
    copy = shutil.copytree(prepared_hearts, tmp_path / "cmr")
    (copy / "manifest.json").unlink()
    return copy
