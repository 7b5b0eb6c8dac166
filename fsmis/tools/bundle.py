"""Runs in one zip file: ``python -m fsmis bundle out.zip RUN...``; report and compare read it.

It holds configuration, provenance, voxel counts of every scan and tables; figures and predictions
on demand alone, because images may be of patients. Paths in it are those of this machine.
"""

import argparse
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from fsmis.cli import command_line, console, errors
from fsmis.errors import UserError
from fsmis.files import now, write_atomic
from fsmis.reporting.bundles import (
    IMAGES,
    INDEX,
    MOST_BYTES,
    MOST_BYTES_OF_A_FILE,
    MOST_FILES,
    SCHEMA,
    TEXTS,
    opened,
    run_path,
)
from fsmis.reporting.runs import StoredRun
from fsmis.runs.records import RunFolder
from fsmis.source import code_version

CELL = re.compile("cells/")
STATES = ("done", "failed", "interrupted")  # of cells that travel


def files_of(run: StoredRun, images: bool) -> dict[str, bytes]:
    """Contents of the files of a run that travel, by their path in its folder; of cells those that
    ended, from which the scores are made, so that they fit while the run goes on."""
    ended = [cell for cell in run.plan["cells"] if run.folder.read(cell)["state"] in STATES]
    cells = {run.folder.cell_file(cell) for cell in ended}
    found = {}
    for path in sorted(run.folder.path.rglob("*")):
        name = path.relative_to(run.folder.path).as_posix()
        kinds = (TEXTS, IMAGES) if images else (TEXTS,)
        wanted = any(kind.fullmatch(name) for kind in kinds)
        if wanted and path.is_file() and (path.parent.name != "cells" or path in cells):
            found[name] = path.read_bytes()
            if len(found[name]) > MOST_BYTES_OF_A_FILE:
                raise UserError(f"{path}: too large for a bundle ({len(found[name])} bytes)")
    with TemporaryDirectory() as place:
        alone = RunFolder(Path(place))
        for name in filter(CELL.match, found):
            alone.write(name, found[name].decode())
        alone.rebuild()
        found["scores.csv"] = (alone.path / "scores.csv").read_bytes()
    return found


def bundle(runs: Sequence[StoredRun], images: bool) -> bytes:
    """A zip file of runs, the same bytes for the same files but for the time in its index.

    Raises:
        UserError: two runs are the same one, or a bundle may not be so large.
    """
    files: dict[str, bytes] = {}
    names = []
    for run in runs:
        name = run_path(run.plan)
        if name in names:
            raise UserError(f"{run.folder.path}: {name} is there twice; give one of them")
        names.append(name)
        files |= {f"{name}/{path}": content for path, content in files_of(run, images).items()}
    if len(files) > MOST_FILES:
        raise UserError(f"{len(files)} files, a bundle has {MOST_FILES} at most; bundle fewer runs")
    size = sum(map(len, files.values()))
    if size > MOST_BYTES:
        raise UserError(f"{size} bytes, a bundle has {MOST_BYTES} at most; bundle fewer runs")
    index = {
        "schema": SCHEMA,
        "made": now(),
        "code": code_version(),
        "runs": names,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {INDEX: json.dumps(index, indent=1).encode(), **files}.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return content.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the bundle; print what is in it."""
    parser = argparse.ArgumentParser(
        prog="python -m fsmis bundle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m fsmis bundle mine.zip results/runs/chaos_mri/copy_mask",
    )
    parser.add_argument("out", type=Path, metavar="OUT.zip", help="to write; replaced if it exists")
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folders, folders of them, or bundles"
    )
    parser.add_argument("--images", action="store_true", help="figures and predictions too")
    options = parser.parse_args(arguments)
    with command_line():
        if options.out.suffix != ".zip":
            raise UserError(f"{options.out}: the name must end in .zip")
        with opened(options.runs) as found:
            runs = [run for run in found if run.folder.done(run.plan["cells"])]
            if not runs:
                raise UserError(f"{options.runs[0]}: no scan is done yet; bundle it later")
            content = bundle(runs, options.images)
            said = [f"{run_path(run.plan)}: {run.covered}" for run in runs]
            left_out = [run_path(run.plan) for run in found if run not in runs]
        write_atomic(options.out, content)
    for line in said:
        console.print(line)
    for name in left_out:
        errors.print(f"{name}: no scan is done yet, left out")
    console.print(f"{options.out}, {len(content) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
