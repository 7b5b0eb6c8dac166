"""A folder of labelled queries: which are finished, and the summary of what was found."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fsmis.data.dicom import series_files
from fsmis.data.volume import NIFTI
from fsmis.errors import UserError
from fsmis.files import counted, sha256, write_atomic
from fsmis.reporting.findings import Found

SUMMARY = "summary.csv"
COLUMNS: dict[str, Any] = {  # of the summary, and their types; slices count from the feet
    **{"query": str, "output": str, "label": "Int64", "voxels": "Int64", "ml": float},
    **{"first_slice": "Int64", "last_slice": "Int64", "confidence": float},
    **{"notes": str, "made_from": str},
}


def queries_in(folder: Path) -> dict[str, Path]:
    """The queries of a folder by name, in the order of the numbers in them: its NIfTI files, and
    its subfolders that hold a DICOM series.

    Raises:
        UserError: there is none, or two have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):  # as macOS leaves beside each file
            continue
        is_series = path.is_dir() and bool(series_files(path))
        if not is_series and not (path.is_file() and path.name.endswith(NIFTI)):
            continue
        name = path.name if is_series else path.name.removesuffix(".gz").removesuffix(".nii")
        if name in found:
            raise UserError(
                f"{path}: its output would have the name of that of {found[name].name}; rename one"
            )
        found[name] = path
    if not found:
        raise UserError(
            f"{folder}: no query in it; give a NIfTI file, a folder of them, a folder with a DICOM "
            "series, or a folder of such folders"
        )
    return dict(sorted(found.items(), key=lambda item: counted(item[0])))


def made_from(settings: str, paths: Sequence[Path]) -> str:
    """What an output was made from, in 12 hex digits: settings, and the bytes of files or of the
    DICOM series in folders.

    Raises:
        UserError: a file cannot be read.
    """
    total = hashlib.sha256(settings.encode())
    for path in paths:
        for file in series_files(path) if path.is_dir() else [path]:
            total.update(f"{file.name} {sha256(file)}\n".encode())
    return total.hexdigest()[:12]


@dataclass
class LabelledFolder:
    """Outputs with their summary, a row for each query and label.

    An output is written before its rows, so rows stand for what is finished.

    Attributes:
        path: the folder.
        rows: of the summary, by query.
    """

    path: Path
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> LabelledFolder:
        """The folder as it lies there, maybe not yet.

        Raises:
            UserError: its summary is damaged.
        """
        summary = path / SUMMARY
        if not summary.is_file():
            return cls(path)
        try:
            frame = pd.read_csv(summary, dtype=COLUMNS, keep_default_na=False, na_values=[""])
            frame = frame[list(COLUMNS)]
        except (KeyError, ValueError, OSError) as error:
            raise UserError(
                f"{summary}: not a summary of labelled queries; remove it and start anew"
            ) from error
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in frame.to_dict("records"):
            rows.setdefault(str(row["query"]), []).append({str(k): v for k, v in row.items()})
        return cls(path, rows)

    def state(self, query: str, output: str, made: str) -> str:
        """``finished``, ``missing``, or ``outdated``: made from something else."""
        rows = self.rows.get(query, [])
        if not rows or rows[0]["output"] != output or not (self.path / output).is_file():
            return "missing"
        return "finished" if rows[0]["made_from"] == made else "outdated"

    def add(
        self, query: str, output: str, made: str, found: Sequence[Found], notes: Sequence[str]
    ) -> None:
        """Replace the rows of a query whose output is written, and write the summary.

        Raises:
            UserError: it cannot be written.
        """
        rows = []
        for some in found:
            first, last = some.slices or (None, None)
            rows.append(
                {
                    **{"query": query, "output": output, "label": some.label},
                    **{"voxels": some.voxels, "ml": round(some.ml, 3)},
                    **{"first_slice": first, "last_slice": last, "confidence": some.confidence},
                    **{"notes": "; ".join(notes), "made_from": made},
                }
            )
        self._replace(query, rows)

    def add_failed(self, query: str, made: str, reason: str) -> None:
        """The same of a query that has no output; it is tried again the next time."""
        self._replace(query, [{"query": query, "notes": f"failed: {reason}", "made_from": made}])

    def _replace(self, query: str, rows: list[dict[str, Any]]) -> None:
        self.rows[query] = rows
        ordered = [row for name in sorted(self.rows, key=counted) for row in self.rows[name]]
        frame = pd.DataFrame(ordered, columns=list(COLUMNS))
        numbers = {name: kind for name, kind in COLUMNS.items() if kind == "Int64"}
        table = frame.astype(numbers).round({"confidence": 4})
        write_atomic(self.path / SUMMARY, table.to_csv(index=False).encode())
