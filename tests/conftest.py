"""Data that several test files read."""

import json
import os
from pathlib import Path

import pytest

from fsmis.phantom import write_phantom

# runs of tests leave no record but where a test is about it
os.environ["WANDB_MODE"] = "disabled"

REPOSITORY = Path(__file__).resolve().parents[1]


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
