"""Which code runs: what changes its hash, what does not, how far it reaches; and its commit, in a
checkout of any state and outside one."""

import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsmis import source
from fsmis.errors import UserError
from fsmis.methods.augment_match_prompt import AugmentMatchPrompt
from fsmis.methods.registration import CopyMask
from fsmis.source import source_hash

MAIN = """
    import numpy as np
    from scipy.ndimage import gaussian_filter as smooth
    from mine import numbers
    from mine.parts import Base, helper

    LIMIT = 3


    class Own(Base):
        def answer(self, x):
            return helper(smooth(np.abs(x))) + LIMIT + numbers.SHIFT


    def unused():
        return 1
"""
PARTS = """
    def helper(x):
        return x + deeper(x)


    def deeper(x):
        return 2 * x


    class Base:
        factor = 1


    def unused():
        return "two"
"""
FILES = {"mine/main.py": MAIN, "mine/parts.py": PARTS, "mine/numbers.py": "SHIFT = 1\nOTHER = 2\n"}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """The hash of ``Own`` in a folder with some files changed or added."""
    folder = tmp_path / "own"
    monkeypatch.syspath_prepend(str(folder))

    def hashed(target: str = "mine.main.Own", **changed: tuple[str, str]) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        for name, text in FILES.items():
            content = textwrap.dedent(text)
            for old, new in [change for key, change in changed.items() if key in name]:
                assert old in content
                content = content.replace(old, textwrap.dedent(new))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        forget()
        return source_hash(target)

    yield hashed
    forget()


def forget() -> None:
    """As in a new process."""
    source._file.cache_clear()
    source._parse.cache_clear()


CHANGES = [
    {"main": ("+ LIMIT", "- LIMIT")},
    {"main": ("LIMIT = 3", "LIMIT = 4")},
    {"main": ("np.abs", "np.sqrt")},
    {"main": ("gaussian_filter", "median_filter")},
    {"main": ("class Own(Base)", "class Own(Base, dict)")},
    {"main": ("LIMIT = 3", "LIMIT = 3\nnp.seterr(all='raise')")},
    {"parts": ("2 * x", "3 * x")},
    {"parts": ("factor = 1", "factor = 2")},
    {"numbers": ("SHIFT = 1", "SHIFT = 2")},
]


@pytest.mark.parametrize(
    "changed", CHANGES, ids=[str(next(iter(c.values()))[1])[:20] for c in CHANGES]
)
def test_changed_code_has_another_hash(own: Callable[..., str], changed: dict) -> None:
    assert own(**changed) != own()


SAME = [
    {"main": ("LIMIT = 3", "# a comment\n\nLIMIT = 3  # another")},
    {"main": ("    def answer(self, x):", '    """A class."""\n\n    def answer(self,\n  x):')},
    {"main": ("import numpy as np\n", '"""A module."""\nimport os\nimport numpy as np\n')},
    {"main": ("return 1", "return 3")},  # of what is not used
    {"parts": ('"two"', '"three"')},
    {"numbers": ("OTHER = 2", "OTHER = 3")},
    {"main": ("def unused", "if __name__ == '__main__':\n    print(1)\n\n\ndef unused")},
]


@pytest.mark.parametrize("changed", SAME, ids=[str(next(iter(c.values()))[1])[:20] for c in SAME])
def test_what_changes_no_answer_leaves_the_hash(own: Callable[..., str], changed: dict) -> None:
    assert own(**changed) == own()


def test_code_may_move(own: Callable[..., str], tmp_path: Path) -> None:
    before = own()
    folder = tmp_path / "own"
    shutil.copytree(folder / "mine", folder / "other/deep")
    shutil.rmtree(folder / "mine")
    moved = folder / "other/deep"
    main = (moved / "main.py").read_text().replace("from mine import", "from . import")
    # a definition goes to a module of its own
    helper, rest = (moved / "parts.py").read_text().split("class Base")
    (moved / "helpers.py").write_text(helper)
    (moved / "parts.py").write_text("class Base" + rest)
    main = main.replace("mine.parts import Base, helper", ".parts import *\nfrom .helpers import *")
    (moved / "main.py").write_text(main)
    forget()
    assert source_hash("other.deep.main.Own") == before


def test_code_that_is_no_code_is_one_line(own: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"main\.py: not Python code \(.*\); mend it"):
        own(main=("LIMIT = 3", "LIMIT = = 3"))


def test_names_of_installed_packages_and_of_nothing_are_taken_as_they_are() -> None:
    assert source_hash("torch.nn.Linear") == source_hash("nowhere.Nothing")
    assert source_hash("__main__.Own") == source_hash("os.path.join")


def test_a_method_reaches_its_steps_and_not_the_report() -> None:
    seen: set[tuple[str, str]] = set()
    todo = source._place(f"{AugmentMatchPrompt.__module__}.AugmentMatchPrompt")
    while todo:
        place = todo.pop()
        if place not in seen:
            seen.add(place)
            todo += source._look(*place)[1]
    names = {name for _, name in seen}
    assert {"VolumePass", "Zoom", "match", "segment_prompted", "largest_component"} <= names
    assert not any(module.startswith("fsmis.reporting") for module, _ in seen)
    assert not any(source._file(m) for m, _ in seen if m.split(".")[0] in ("torch", "numpy"))


def test_a_class_and_its_name_are_the_same() -> None:
    assert source_hash(CopyMask) == source_hash("fsmis.methods.registration.CopyMask")
    assert source_hash(CopyMask) != source_hash(AugmentMatchPrompt)


OWN = "fsmis/source.py"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, of a copy of the module that asks."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    own = tmp_path / OWN
    own.parent.mkdir(parents=True)
    shutil.copy(source.__file__, own)
    monkeypatch.setattr(source, "__file__", str(own))
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
    assert source.git_state() == {"commit": commit, "dirty": False}
    git(checkout, "checkout", "-q", "--detach")
    assert source.git_state() == {"commit": commit, "dirty": False}
    assert source.code_version() == commit[:12]


def test_changed_files_are_flagged_and_new_ones_are_not(checkout: Path) -> None:
    (checkout / "results.csv").touch()
    assert source.git_state()["dirty"] is False
    (checkout / OWN).write_text("changed")
    assert source.git_state()["dirty"] is True
    assert source.code_version().endswith("+changes")


def test_files_of_the_package_count_before_git_tracks_them(checkout: Path) -> None:
    (checkout / ".gitignore").write_text("*.pyc\n")
    (checkout / "fsmis/source.pyc").touch()
    assert source.git_state()["dirty"] is False
    (checkout / "fsmis/methods").mkdir()
    (checkout / "fsmis/methods/mine.py").write_text("x = 1")
    assert source.git_state()["dirty"] is True


def test_repository_around_an_installed_package_is_not_its_own(checkout: Path) -> None:
    git(checkout, "rm", "-q", "--cached", OWN)
    assert source.git_state() is None
    assert source.code_version() in (source.package_version("fsmis"), "unknown")
