"""A prepared folder: its manifest, and whether its scans are as their dataset expects; and what is
odd about any volume."""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes

from fsmis.cli import console, errors
from fsmis.data.dataset import FILE_NAME, Dataset
from fsmis.data.expectation import organ_volumes
from fsmis.errors import UserError
from fsmis.files import counted, require_name, sha256, write_atomic

NAME = "manifest.json"


class Manifest:
    """The record of a prepared folder, written after every scan.

    Attributes:
        settings: those of the preparation.
        scans: by scan id: ``source`` and ``files``, the raw and the prepared files with their
            SHA-256; ``spacing`` in mm and ``size``, both (z, y, x); ``voxels`` of each label id.
    """

    def __init__(
        self, folder: Path, dataset: str, settings: dict[str, Any], scans: dict[str, Any]
    ) -> None:
        self._path = folder / NAME
        self.dataset = dataset
        self.settings = settings
        self.scans = scans

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """The folder's manifest; None where there is none.

        Raises UserError where it is damaged or names a file outside the folder.
        """
        path = folder / NAME
        try:
            record = json.loads(path.read_bytes())
            for name in (name for scan in record["scans"].values() for name in scan["files"]):
                require_name(f"{path}: files", name)
            return cls(folder, record["dataset"], record["settings"], dict(record["scans"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged; remove it and prepare the folder again") from error

    def add(self, scan_id: str, entry: dict[str, Any]) -> None:
        self.scans[scan_id] = entry
        self.scans = dict(sorted(self.scans.items(), key=lambda item: counted(item[0])))
        record = {"dataset": self.dataset, "settings": self.settings, "scans": self.scans}
        write_atomic(self._path, (json.dumps(record, indent=1) + "\n").encode())

    def changed(self) -> list[Path]:
        """Prepared files that are missing or differ from what was written."""
        folder = self._path.parent
        files = {name: sha for scan in self.scans.values() for name, sha in scan["files"].items()}
        return [
            folder / name
            for name, sha in files.items()
            if not (folder / name).is_file() or sha256(folder / name) != sha
        ]

    def unlisted(self) -> list[Path]:
        """Scans beside those listed, such as of an earlier preparation with other settings."""
        listed = {name for scan in self.scans.values() for name in scan["files"]}
        files = sorted(self._path.parent.iterdir())
        return [p for p in files if FILE_NAME.fullmatch(p.name) and p.name not in listed]


CHECKS = 4  # raised when they change, so that folders are checked anew


@dataclass
class Finding:
    """What was seen of a scan.

    Attributes:
        size: slices, rows and columns.
        spacing: mm, in the same order.
        axes: where columns, rows and slices grow to, e.g. ``LAS`` for left, front and head.
        directions: the same as unit vectors, float ``[3, 3]`` in columns; None: not read.
        organ_ml: volume of each scored organ that is present.
        problems: reasons not to use it, each naming a file and what to do.
    """

    size: str = ""
    spacing: str = ""
    axes: str = ""
    directions: np.ndarray | None = None
    organ_ml: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def check_scan(dataset: Dataset, scan_id: str) -> Finding:
    """Compare one scan with what the dataset expects; UserError where it cannot be read."""
    image, label, spacing, affine = dataset.read(scan_id)
    image_path, label_path = dataset.files(scan_id)
    volumes = organ_volumes(label, spacing, dataset.organs)
    if image.min() == image.max():
        problems = [f"{image_path}: every voxel is {image.min():g}; prepare the scan again"]
    else:
        expected = dataset.expected.problems(image, label, spacing, volumes)
        problems = [f"{label_path}: {problem}" for problem in expected]
    return Finding(
        size=" x ".join(map(str, image.shape)),
        spacing=" x ".join(f"{mm:.2f}" for mm in spacing),
        axes="".join(aff2axcodes(affine)),
        directions=affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0),
        organ_ml=volumes,
        problems=problems,
    )


def check_organs(dataset: Dataset, found: Collection[str]) -> list[str]:
    """Organs with an expected volume that no scan has, so that their label ids must be wrong."""
    return [
        f"{dataset.root}: no scan has {organ}, label id {dataset.organs[organ]} of {dataset.name}; "
        "the labels may follow another dataset, or accept it with dataset.expected.organ_ml=null"
        for organ in dataset.organs
        if organ in (dataset.expected.organ_ml or {}) and organ not in found
    ]


def check_axes(dataset: Dataset, findings: Mapping[str, Finding]) -> list[str]:
    """Scans that lie otherwise than most, whose slices a method would compare turned or mirrored.

    Scans of oblique planes differ by some degrees, whatever their nearest axes are.
    """
    read = {i: f.directions for i, f in findings.items() if f.directions is not None}
    if dataset.expected.turned is None or not read:
        return []
    stacked = np.stack(list(read.values()))
    cosines = np.einsum("ika,jka->ija", stacked, stacked).min(axis=2)
    alike = cosines >= np.cos(np.deg2rad(dataset.expected.turned))
    usual = int(alike.sum(axis=1).argmax())
    axes = {i: findings[i].axes for i in read}
    of_most = axes[list(read)[usual]]
    return [
        f"scan {i}: its axes are {axes[i]}, those of most {of_most}; bring all to one by "
        "python -m data_prep.folder, or accept it with dataset.expected.turned=null"
        for i, same in zip(read, alike[usual], strict=True)
        if not same
    ]


def check_manifest(folder: Path) -> list[str]:
    """Files that differ from the manifest, each with what to do; UserError if that is damaged."""
    manifest = Manifest.read(folder)
    if manifest is None:
        return []
    advice = f"prepare it again, or remove {NAME} if that is on purpose"
    changed = [
        f"{p}: changed or removed since it was prepared; {advice}" for p in manifest.changed()
    ]
    unlisted = [
        f"{p}: not prepared with the scans in {NAME}; {advice}" for p in manifest.unlisted()
    ]
    return changed + unlisted


def verify_once(dataset: Dataset) -> None:
    """Check all scans, unless these files have passed before; a pass is kept in the user's cache.

    Prints all problems but the first, with which it raises UserError. A scan that cannot be read is
    left to the run, where it fails while the others go on.
    """
    passed = _cache() / _identity(dataset)
    if passed.is_file():
        return
    console.print(f"verifying {len(dataset.scan_ids)} scans of {dataset.name}, once")
    findings = {}
    for scan_id in dataset.scan_ids:
        with suppress(UserError):
            findings[scan_id] = check_scan(dataset, scan_id)
    seen = findings.values()
    problems = check_manifest(dataset.root) + check_axes(dataset, findings)
    problems += [problem for finding in seen for problem in finding.problems]
    problems += check_organs(dataset, {organ for finding in seen for organ in finding.organ_ml})
    if problems:
        for problem in problems[1:]:
            errors.print(problem)
        raise UserError(problems[0])
    if len(findings) == len(dataset.scan_ids):
        with suppress(UserError):  # a home that nobody may write: verified again next time
            write_atomic(passed, f"{dataset.name} {dataset.root.resolve()}\n".encode())


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fsmis" / "verified"


def _identity(dataset: Dataset) -> str:
    manifest = dataset.root / NAME
    parts = [
        CHECKS,
        dataset.fingerprint(),
        sha256(manifest) if manifest.is_file() else None,
        dataset.organs,
        dataset.expected,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


FLAT = 0.98  # share of voxels of one value from which a volume counts as nearly constant


def notes_on(name: str, pixels: np.ndarray) -> list[str]:
    """Remarks on a volume ``[Z, H, W]`` that is constant, nearly so, or has empty slices.

    Empty slices hold one value: padding, or where a scanner wrote nothing.
    """
    if pixels.min() == pixels.max():
        return [f"{name}: every voxel has the value {pixels.flat[0]:g}; nothing can be found in it"]
    remarks = []
    usual = np.partition(pixels, pixels.size // 2, axis=None)[pixels.size // 2]
    share = np.count_nonzero(pixels == usual) / pixels.size
    if share >= FLAT:  # above one half, the usual value can be no other
        remarks.append(
            f"{name}: nearly constant, {100 * share:.1f} % of its voxels have the value {usual:g}"
        )
    flat = pixels.reshape(len(pixels), -1)
    empty = np.flatnonzero(flat.min(axis=1) == flat.max(axis=1))
    if len(empty):
        remarks.append(f"{name}: {len(empty)} of {len(pixels)} slices are empty, of one value each")
    return remarks
