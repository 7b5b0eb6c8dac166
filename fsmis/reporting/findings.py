"""What was found in labelled volumes: what to doubt of it, and its summary for a folder of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import label

from fsmis.data.dicom import series_files
from fsmis.data.protocol import Episode
from fsmis.data.verify import notes_on
from fsmis.data.volume import Volume, require_other
from fsmis.errors import UserError
from fsmis.files import counted, sha256, write_atomic
from fsmis.pipeline.whole_volume import unlikeness

TILT_DEG = 0.5  # axes that are off a right angle by less are taken for straight


@dataclass(frozen=True)
class Found:
    """What was found of one label.

    Attributes:
        label: its value.
        voxels: how many.
        ml: their volume in millilitres.
        slices: the first and the last that hold it, counted from the feet; None where none does.
        confidence: overlap with the truth that the model predicts, in [0, 1]; None where it was not
            found or the method cannot say.
    """

    label: int
    voxels: int
    ml: float
    slices: tuple[int, int] | None
    confidence: float | None

    def __str__(self) -> str:
        where = "not found"
        if self.slices is not None:
            where = f"slices {self.slices[0]} to {self.slices[1]}, from the feet"
        sure = "" if self.confidence is None else f", confidence {self.confidence:.2f}"
        return f"label {self.label}: {self.voxels} voxels, {self.ml:.1f} ml, {where}{sure}"


def found_in(
    labels: np.ndarray, query: Volume, values: Sequence[int], confidence: Mapping[str, float]
) -> list[Found]:
    """What was found of each label value.

    Args:
        labels: [Z, H, W] on the voxels of ``query.axial``.
        query: the volume.
        values: looked for.
        confidence: by value as text, of those known.
    """
    voxel_ml = abs(float(np.linalg.det(query.axial.affine[:3, :3]))) / 1000
    found = []
    for value in values:
        mask = labels == value
        held = np.flatnonzero(mask.any(axis=(1, 2)))
        slices = (int(held[0]), int(held[-1])) if len(held) else None
        voxels = int(np.count_nonzero(mask))
        sure = confidence.get(str(value)) if slices else None
        found.append(Found(value, voxels, voxels * voxel_ml, slices, sure))
    return found


def doubts(found: Sequence[Found], n_slices: int, doubt_below: float) -> list[str]:
    """What makes an answer doubtful, one line each.

    Args:
        found: of each label.
        n_slices: of the volume.
        doubt_below: confidence from which on there is no doubt.
    """
    notes = []
    if missing := [some.label for some in found if some.slices is None]:
        notes.append(f"{labels_in_words(missing)} not found in any slice")
    for some in found:
        if some.confidence is not None and some.confidence < doubt_below:
            notes.append(
                f"label {some.label}: confidence {some.confidence:.2f}, below "
                f"doubt_below={doubt_below:g}; look at every slice"
            )
    ends = {0, n_slices - 1}
    at_end = [some.label for some in found if some.slices and ends & set(some.slices)]
    if at_end and n_slices > 1:
        notes.append(
            f"{labels_in_words(at_end)} found up to the end of the volume (slice 0 or "
            f"{n_slices - 1}): cut off there, or taken for something else"
        )
    return notes


def notes_on_inputs(
    supports: Sequence[Volume], query: Volume, episode: Episode, *, unlike: float, one_part: bool
) -> list[str]:
    """What a user should know of the inputs, one line each.

    Args:
        supports: the labelled volumes.
        query: the volume to label.
        episode: of both.
        unlike: ``unlikeness`` from which on a modality is another.
        one_part: of the answer the largest part is kept.
    """
    notes = [note for volume in (*supports, query) for note in _notes_on(volume)]
    notes += [
        f"{query.name}: its grey values are spread otherwise than those of {support.name}, as in "
        "another modality or sequence; the answer may be worth nothing"
        for support in supports
        if unlikeness(support.axial.pixels, query.axial.pixels) > unlike
    ]
    if one_part and (scattered := _of_several_parts(episode)):
        notes.append(
            f"labels {', '.join(scattered)} have several parts in the support; of the answer the "
            "largest is kept, method.largest_component=false keeps all"
        )
    return notes


def labels_in_words(values: Sequence[int]) -> str:
    """Such as ``labels 1, 4``."""
    return f"label{'s' * (len(values) > 1)} {', '.join(map(str, values))}"


def _notes_on(volume: Volume) -> list[str]:
    notes = notes_on(volume.name, volume.axial.pixels)
    if volume.axial.tilt_deg >= TILT_DEG:
        notes.append(
            f"{volume.name}: its axes are {volume.axial.tilt_deg:.1f} degrees off a right angle (a "
            "tilted gantry); its slices are used as they are, and labels lie on the same voxels"
        )
    return notes


def _of_several_parts(episode: Episode) -> list[str]:
    """Labels that are nowhere connected in the support, as of lesions or both lungs; an organ may
    be in two parts in a slice."""
    connected = np.ones((3, 3))  # diagonally too
    return sorted(
        organ
        for organ, task in episode.organs.items()
        if all(label(mask, connected)[1] > 1 for mask in task.support_masks)
    )


SUMMARY = "summary.csv"
COLUMNS: dict[str, Any] = {  # of the summary, and their types; slices count from the feet
    **{"query": str, "output": str, "label": "Int64", "voxels": "Int64", "ml": float},
    **{"first_slice": "Int64", "last_slice": "Int64", "confidence": float},
    **{"notes": str, "made_from": str, "sha256": str},
}


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

    An output is written before its rows, so rows stand for what is finished. A row tells its
    SHA-256, so that what somebody corrected since is known and stays; without an output, that there
    was nothing to write (an empty DICOM-SEG).

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

    def claim(self, outputs: Iterable[str], inputs: Sequence[Path]) -> None:
        """Begin the summary; UserError where an output is an input, or lies there already and no
        summary tells of it."""
        begun = (self.path / SUMMARY).is_file()
        for path in (self.path / name for name in outputs):
            require_other(path, inputs)
            if path.exists() and not begun:
                raise UserError(
                    f"{path}: is there already, and no {SUMMARY} beside it says that it was made "
                    "here; choose another folder for --output, or move it"
                )
        if not begun:
            self._write()

    def state(self, query: str, output: str, made: str) -> str:
        """``finished``, ``missing``, ``changed`` since it was written, or ``outdated``: made from
        something else."""
        rows = self.rows.get(query, [])
        if not rows or pd.isna(rows[0]["label"]):
            return "missing"
        path = self.path / output
        if not pd.isna(rows[0]["output"]):
            if rows[0]["output"] != output or not path.is_file():
                return "missing"
            if rows[0]["sha256"] != sha256(path):
                return "changed"
        return "finished" if rows[0]["made_from"] == made else "outdated"

    def add(
        self, query: str, output: str | None, made: str, found: Sequence[Found], notes: list[str]
    ) -> None:
        """Replace the rows of a query whose output is written, None where there is nothing to, and
        write the summary.

        Raises:
            UserError: it cannot be written.
        """
        digest = None if output is None else sha256(self.path / output)
        rows = []
        for some in found:
            first, last = some.slices or (None, None)
            rows.append(
                {
                    **{"query": query, "output": output, "label": some.label},
                    **{"voxels": some.voxels, "ml": round(some.ml, 3)},
                    **{"first_slice": first, "last_slice": last, "confidence": some.confidence},
                    **{"notes": "; ".join(notes), "made_from": made, "sha256": digest},
                }
            )
        self._replace(query, rows)

    def add_failed(self, query: str, made: str, reason: str) -> None:
        """The same of a query that has no output; it is tried again the next time."""
        self._replace(query, [{"query": query, "notes": f"failed: {reason}", "made_from": made}])

    def _replace(self, query: str, rows: list[dict[str, Any]]) -> None:
        # Read anew, since another command may have added to it.
        self.rows = LabelledFolder.open(self.path).rows | {query: rows}
        self._write()

    def _write(self) -> None:
        ordered = [row for name in sorted(self.rows, key=counted) for row in self.rows[name]]
        frame = pd.DataFrame(ordered, columns=list(COLUMNS))
        numbers = {name: kind for name, kind in COLUMNS.items() if kind == "Int64"}
        table = frame.astype(numbers).round({"confidence": 4})
        write_atomic(self.path / SUMMARY, table.to_csv(index=False).encode())
