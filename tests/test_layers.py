"""The house: few rooms, and imports that go one way through them."""

import ast
from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

PACKAGE = Path(__file__).parents[1] / "fsmis"
MODULES = list(PACKAGE.rglob("*.py"))


def test_imports_keep_the_contracts(monkeypatch):
    monkeypatch.chdir(PACKAGE.parent)
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS


def test_first_level_is_seen_at_a_glance():
    shown = [path for path in PACKAGE.iterdir() if not path.name.startswith("_")]
    assert len([path for path in shown if path.is_dir()]) <= 8
    assert len(list(PACKAGE.glob("*.py"))) <= 10


def test_files_are_few_and_short():
    assert len(MODULES) <= 100
    long = {path.name: len(path.read_text().splitlines()) for path in MODULES}
    assert not {name: lines for name, lines in long.items() if lines > 300}


def test_commands_run_when_all_is_defined():
    for path in [*MODULES, *(PACKAGE.parent / "experiments").glob("*.py")]:
        guards = [
            place
            for place, statement in enumerate(reversed(ast.parse(path.read_text()).body))
            if isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)
        ]
        assert guards in ([], [0]), path
