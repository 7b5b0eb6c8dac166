"""Which code runs: a hash of a class or function with all the code that it uses; commit, packages.

The code of this project and of the user's own folders is read; of installed packages only the names
that are used count. Comments, blank lines, docstrings, import statements and the module in which a
definition stands do not count, so that code can move.
"""

import ast
import hashlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from fsmis.errors import UserError

PROJECT = __name__.split(".")[0]
INSTALLED = {"site-packages", "dist-packages"}  # folders of packages
EVERYTHING, LOOSE = "*", ""  # as names in a module: all of it, and what only runs on import


@dataclass(frozen=True)
class _Statement:
    """A statement of a module: its hash, and the names it reads with the attribute each is for."""

    digest: str
    uses: frozenset[tuple[str, str | None]]


@dataclass(frozen=True)
class _Module:
    """Statements by the name that they define, and what imported names stand for."""

    statements: dict[str, list[_Statement]] = field(default_factory=lambda: defaultdict(list))
    imports: dict[str, list[tuple[str, str | None]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def imported(self, name: str, attribute: str | None) -> list[tuple[str, str]]:
        """Places that a name may stand for; ``attribute`` may be all of it that is used."""
        origins = self.imports.get(name, [])
        if not origins and name not in self.statements:
            origins = [(module, name) for module, _ in self.imports.get(EVERYTHING, [])]
        return [place for origin in origins for place in _origin(*origin, attribute)]


def source_hash(*targets: object) -> str:
    """Twelve hexadecimal digits for classes and functions (or their dotted names) and all they use.

    Files are read once in a process, as Python does: later edits are not what runs. Raises
    UserError where a file of own code is not Python.
    """
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = [place for target in targets for place in _place(_dotted(target))]
    while todo:
        place = todo.pop()
        if place not in seen:
            seen.add(place)
            digests, used = _look(*place)
            found.update(digests)
            todo.extend(used)
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:12]


def _dotted(target: Any) -> str:
    return target if isinstance(target, str) else f"{target.__module__}.{target.__qualname__}"


def _place(dotted: str) -> list[tuple[str, str]]:
    """Module and name in it that a dotted name stands for; none where it is not of own code."""
    parts = dotted.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        if _file(module) is not None:
            return [(module, parts[length])]
    return []


def _look(module: str, name: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Hashes of what a name of a module stands for, and the places that it uses."""
    parsed = _parse(module)
    if parsed is None:
        return [f"{module}.{name}"], []  # of an installed package
    if name == EVERYTHING:
        return [], [(module, known) for known in [*parsed.statements, *parsed.imports]]
    statements = parsed.statements.get(name, [])
    used = [] if name == LOOSE else [(module, LOOSE), *parsed.imported(name, None)]
    for base, attribute in (use for statement in statements for use in statement.uses):
        if base in parsed.statements:
            used.append((module, base))
        used += parsed.imported(base, attribute)
    return [statement.digest for statement in statements], used


def _origin(module: str, name: str | None, attribute: str | None) -> list[tuple[str, str]]:
    """Places of an imported name (None: the module itself) of which an attribute is used."""
    if name is None:
        return [(module, attribute or EVERYTHING)]
    if _file(f"{module}.{name}") is not None:
        return [(f"{module}.{name}", attribute or EVERYTHING)]
    return [(module, name)]


@cache
def _file(module: str) -> Path | None:
    """Source file of a module of own code; finds it without importing anything."""
    root, *rest = module.split(".")
    if root in sys.stdlib_module_names:
        return None
    try:
        spec = find_spec(root)
    except ValueError:  # of __main__
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        candidates = [Path(spec.origin)] if spec.origin and not rest else []
    else:
        bases = [Path(folder, *rest) for folder in spec.submodule_search_locations]
        candidates = [base / "__init__.py" for base in bases]
        candidates += [base.parent / f"{base.name}.py" for base in bases if rest]
    own = [path for path in candidates if root == PROJECT or INSTALLED.isdisjoint(path.parts)]
    return next((path for path in own if path.suffix == ".py" and path.is_file()), None)


@cache
def _parse(module: str) -> _Module | None:
    path = _file(module)
    if path is None:
        return None
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not Python code ({error}); mend it") from error
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    parsed = _Module()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name, origin in _imported(node, package):
                parsed.imports[name].append(origin)
    for statement in tree.body:
        if not _is_silent(statement) and not _is_for_scripts_or_types(statement):
            digest = hashlib.sha256(repr(_plain(statement)).encode()).hexdigest()
            known = _Statement(digest, frozenset(_uses(statement)))
            for name in _defined(statement) or [LOOSE]:
                parsed.statements[name].append(known)
    return parsed


def _imported(
    node: ast.Import | ast.ImportFrom, package: str
) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Names that an import binds, with the module each is from and its name there."""
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            yield alias.asname or alias.name, (resolve_name(relative, package), alias.name)
        elif alias.asname or "." not in alias.name:
            yield alias.asname or alias.name, (alias.name, None)
        else:  # binds the outermost package
            yield alias.name.split(".")[0], (alias.name, EVERYTHING)


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets: Iterable[ast.AST] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    names = [node for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return [name.id for name in names if isinstance(name.ctx, ast.Store)]


def _uses(statement: ast.stmt) -> Iterator[tuple[str, str | None]]:
    nodes = list(ast.walk(statement))
    attributes = {id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Name):
            yield node.id, attributes.get(id(node))


def _is_silent(item: Any) -> bool:
    if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant):
        return isinstance(item.value.value, str)
    return isinstance(item, ast.Import | ast.ImportFrom)


def _is_for_scripts_or_types(statement: ast.stmt) -> bool:
    """Whether a statement does nothing in a module that is imported to run."""
    return isinstance(statement, ast.If) and any(
        isinstance(node, ast.Name) and node.id in ("__name__", "TYPE_CHECKING")
        for node in ast.walk(statement.test)
    )


def _plain(item: Any) -> Any:
    """Code as nested lists, the same in every version of Python (``ast.dump`` is not)."""
    if isinstance(item, list):
        return [_plain(part) for part in item if not _is_silent(part)]
    if isinstance(item, ast.AST):
        parts = [(name, _plain(value)) for name, value in ast.iter_fields(item)]
        return [type(item).__name__, *(part for part in parts if part[1] not in (None, []))]
    return item


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """``commit`` and whether the checkout is ``dirty``; None without git or outside a checkout.

    Dirty means changed tracked files, or untracked files in the package. A checkout that merely
    surrounds the installed package (a virtual environment inside another project) does not count.
    """
    own = Path(__file__)

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=own.parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", own.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        new = git("ls-files", "--others", "--exclude-standard", str(own.parent))
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed or new)}
    except (OSError, subprocess.CalledProcessError):
        return None


def code_version() -> str:
    """The commit, marked where files differ from it; without one, the package's version."""
    git = git_state()
    if git is None:
        return package_version("fsmis") or "unknown"
    return git["commit"][:12] + ("+changes" if git["dirty"] else "")
