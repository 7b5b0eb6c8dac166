"""Where numbers come from, in a checkout of any state and outside one."""

import shutil
import subprocess
from pathlib import Path

import pytest

from fsmis.runs import provenance

OWN = "fsmis/runs/provenance.py"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, of a copy of the module that asks."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    own = tmp_path / OWN
    own.parent.mkdir(parents=True)
    shutil.copy(provenance.__file__, own)
    monkeypatch.setattr(provenance, "__file__", str(own))
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", str(own))
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_commit_is_named_with_a_detached_head_too(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert provenance.git_state() == {"commit": commit, "dirty": False}
    git(checkout, "checkout", "-q", "--detach")
    assert provenance.git_state() == {"commit": commit, "dirty": False}
    assert provenance.code_version() == commit[:12]


def test_changed_files_are_flagged_and_new_ones_are_not(checkout: Path) -> None:
    (checkout / "results.csv").touch()
    assert provenance.git_state()["dirty"] is False
    (checkout / OWN).write_text("changed")
    assert provenance.git_state()["dirty"] is True
    assert provenance.code_version().endswith("+changes")


def test_files_of_the_package_count_before_git_tracks_them(checkout: Path) -> None:
    (checkout / ".gitignore").write_text("*.pyc\n")
    (checkout / "fsmis/runs/provenance.pyc").touch()
    assert provenance.git_state()["dirty"] is False
    (checkout / "fsmis/methods").mkdir()
    (checkout / "fsmis/methods/mine.py").write_text("x = 1")
    assert provenance.git_state()["dirty"] is True


def test_repository_around_an_installed_package_is_not_its_own(checkout: Path) -> None:
    git(checkout, "rm", "-q", "--cached", OWN)
    assert provenance.git_state() is None
    assert provenance.code_version() in (provenance.package_version("fsmis"), "unknown")
