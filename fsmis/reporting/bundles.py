"""Runs in a zip file, to be sent to others and read like a folder: what is in one, and its checks.

A bundle holds ``bundle.json`` and, below ``<dataset>/<method>/<variant>/``, the files of each run.
It may come from anywhere: nothing in it is believed before its name, size, checksum and values are
checked, and no file leaves the temporary folder that it is unpacked into.
"""

import hashlib
import json
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from PIL import Image

from fsmis.errors import UserError
from fsmis.files import require_name
from fsmis.reporting.beside import data_of
from fsmis.reporting.runs import StoredRun, read_runs, stored_runs
from fsmis.runs.records import PLAN, RunFolder

SCHEMA = 1
INDEX = "bundle.json"
TEXTS = re.compile(
    r"(plan\.json|config\.yaml|provenance\.json|scores\.csv|summary\.(csv|md)"
    r"|cells/fold\d+_scan[^/]+\.json|training/fold_\d+\.csv)"
)
IMAGES = re.compile(r"(figures|training)/[^/]+\.png|predictions/[^/]+\.nii\.gz")
NEEDED = {"plan.json", "scores.csv"}
MOST_FILES = 100_000
LONGEST_FILE = 255  # characters of a file's name, which holds an id of up to 100
MOST_BYTES = 2**31  # of all files together, unpacked
MOST_BYTES_OF_A_FILE = 2**28
MOST_PIXELS = 10**8  # of a picture
DAMAGED = (
    *(OSError, ValueError, EOFError, RuntimeError, NotImplementedError),  # of zipfile, json, PIL
    *(zipfile.BadZipFile, zlib.error, yaml.YAMLError, Image.DecompressionBombError),
)


def run_path(plan: dict[str, Any]) -> str:
    """``<dataset>/<method>/<variant>`` of a run, each a name that leads nowhere else.

    Raises:
        UserError: one is none.
    """
    parts = [plan["dataset"], *str(plan["method"]).split("/"), plan["variant"]]
    return "/".join(require_name("run", part) for part in parts)


def folder_of(sources: Sequence[Path]) -> Path:
    """Where to write what is made of folders and bundles: the first, or where it lies."""
    return sources[0].parent if sources[0].is_file() else sources[0]


@contextmanager
def opened(sources: Sequence[Path], or_none: bool = False) -> Iterator[list[StoredRun]]:
    """The runs of folders and bundles, to be read inside the block.

    A run that several sources hold with the same scores is there once. ``or_none``: a folder that
    exists may hold none yet.

    Raises:
        UserError: a source cannot be read or is not to be believed, or they do not belong together.
    """
    with ExitStack() as stack:
        found = []
        for source in sources:
            folder = source
            if source.is_file():
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                _unpack(source, folder)
            read = stored_runs if or_none and folder.is_dir() else read_runs
            found.append((source, read(folder)))
        yield _merged(found)


def _merged(found: list[tuple[Path, list[StoredRun]]]) -> list[StoredRun]:
    """The runs of all sources, those that several hold once; of a single one as they are."""
    if len(found) == 1:
        return found[0][1]
    first: dict[str, tuple[Path, set[tuple[str, str]]]] = {}
    runs: list[StoredRun] = []
    seen: dict[str, tuple[Path, StoredRun]] = {}
    for source, own in found:
        for dataset in sorted({run.plan["dataset"] for run in own}):
            of_dataset = [run for run in own if run.plan["dataset"] == dataset]
            kinds = {(run.plan["protocol"], data_of(run.plan)) for run in of_dataset}
            where, known = first.setdefault(dataset, (source, kinds))
            if not kinds & known:  # what a source holds of several is told apart in its tables
                here, there = ("; ".join(map(", ".join, sorted(some))) for some in (kinds, known))
                shared = {kind[0] for kind in kinds} & {kind[0] for kind in known}
                raise UserError(
                    f"{source}: runs on {dataset} of {here}, but those of {where} are of {there} "
                    f"({'other data' if shared else 'protocol'}); not to be merged, report them "
                    "one by one"
                )
            first[dataset] = where, known | kinds
        for run in own:
            where, twin = seen.setdefault(run_path(run.plan), (source, run))
            if twin is run or where == source:  # what lies twice in a folder is told apart there
                runs.append(run)
            elif not _same(twin, run):
                raise UserError(
                    f"{source}: {run.method} {run.variant} has other scores than the same run in "
                    f"{where}; leave one of them out"
                )
    return runs


def _same(one: StoredRun, other: StoredRun) -> bool:
    """Whether two runs hold the same scores, whatever the time they took."""
    tables = [run.scores.drop(columns="seconds").to_csv(index=False) for run in (one, other)]
    return tables[0] == tables[1]


def _unpack(path: Path, folder: Path) -> None:
    """Write the files of a bundle below a folder.

    Raises:
        UserError: it is no bundle, of another version, or something in it is not to be believed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
            if len(members) > MOST_FILES:
                raise ValueError(f"{len(members)} files, more than {MOST_FILES}")
            if INDEX not in members:
                raise ValueError(f"no {INDEX} in it, so it is none of `python -m fsmis bundle`")
            index = _index(_read(archive, members.pop(INDEX)))
            digests: dict[str, str] = index["files"]
            if odd := sorted(members.keys() ^ digests.keys()):
                raise ValueError(f"{odd[0]!r} is in {INDEX} or in the zip file, and not in both")
            total = 0
            for name, member in members.items():
                content = _read(archive, member)
                total += len(content)
                if total > MOST_BYTES:
                    raise ValueError(f"more than {MOST_BYTES} bytes unpacked")
                if hashlib.sha256(content).hexdigest() != digests[name]:
                    raise ValueError(f"{name} has another checksum than {INDEX} says")
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        for run in index["runs"]:
            _check_run(folder / run, run)
    except UserError as error:
        raise UserError(f"{path}: {str(error).replace(f'{folder}/', '')}") from error
    except DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a bundle to be read: {reason}; get it again") from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename
        parts = PurePosixPath(name).parts
        kind = member.external_attr >> 28  # of the Unix mode: 0 none, 8 a regular file
        if kind not in (0, 8) or name != "/".join(parts) or {"..", ".", "/"} & set(parts):
            raise ValueError(f"{name!r} is no plain file below the bundle")
        for part in parts:
            require_name("file", part, LONGEST_FILE)
        if name in members:
            raise ValueError(f"{name!r} is in it twice")
        members[name] = member
    return members


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as file:
        content = file.read(MOST_BYTES_OF_A_FILE + 1)  # whatever size the header states
    if len(content) > MOST_BYTES_OF_A_FILE:
        raise ValueError(f"{member.filename} has more than {MOST_BYTES_OF_A_FILE} bytes")
    return content


def _index(content: bytes) -> dict[str, Any]:
    try:
        index = json.loads(content)
        schema = index["schema"]
        runs, files = index["runs"], index["files"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{INDEX} is damaged") from error
    if schema != SCHEMA:
        raise ValueError(f"its schema is {schema!r}, this version reads {SCHEMA}")
    texts = isinstance(runs, list) and all(isinstance(run, str) for run in runs)
    if not texts or not runs or not isinstance(files, dict):
        raise ValueError(f"{INDEX} names no runs or no files")
    for name in files:
        own = [name.removeprefix(f"{run}/") for run in runs if name.startswith(f"{run}/")]
        if not any(TEXTS.fullmatch(part) or IMAGES.fullmatch(part) for part in own):
            raise ValueError(f"{name!r} is no file of a run")
    for run in runs:
        for name in sorted(NEEDED):
            if f"{run}/{name}" not in files:
                raise ValueError(f"{run} has no {name}")
    return index


def _check_run(folder: Path, name: str) -> None:
    """Refuse values of a run that cannot be, or that would do more than stand in a table."""
    run = RunFolder(folder)
    plan = run.plan()
    wanted = {"organs": list, "choices": dict, "identity": dict, "cells": list}
    for key in PLAN:
        if not isinstance(plan[key], wanted.get(key, str)):
            raise ValueError(f"{name}/plan.json: {key} is of another type")
    identity = plan["identity"]
    types = {"method": dict, "seed": int, "data": str}
    if any(not isinstance(identity.get(key), kind) for key, kind in types.items()):
        raise ValueError(f"{name}/plan.json: identity lacks method, seed or data")
    for organ in plan["organs"]:
        require_name("organ", organ)
    if run_path(plan) != name:
        raise ValueError(f"{name}/plan.json is of {run_path(plan)}")
    scores = run.scores()
    for key in ("dataset", "method", "variant", "protocol"):
        if set(scores[key]) - {plan[key]}:
            raise ValueError(f"{name}/scores.csv: a row is of another {key}")
    planned = {run.cell_file(cell): cell for cell in plan["cells"]}
    for path in folder.glob("cells/*"):
        if path not in planned:
            raise ValueError(f"{name}/cells/{path.name} is not planned")
        if problem := run.problem(planned[path]):
            raise ValueError(problem.replace(f"{folder}", name))
    run.rebuild()
    if not scores.equals(run.scores()):
        raise ValueError(f"{name}/scores.csv has other rows than the cells beside it")
    config = folder / "config.yaml"
    if config.is_file():
        text = config.read_text()
        aliases = any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, yaml.SafeLoader))
        if "${" in text or aliases:  # a resolved configuration has neither
            raise ValueError(f"{name}/config.yaml: not resolved")
    for picture in folder.rglob("*.png"):
        with Image.open(picture) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{name}: {picture.name} has more than {MOST_PIXELS} pixels")
