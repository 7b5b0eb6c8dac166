"""What was found in a labelled volume, and what a user should know before believing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label

from fsmis.data.intensities import notes_on, unlikeness
from fsmis.data.protocol import Episode
from fsmis.data.volume import Volume

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
        notes.append(f"{_labels(missing)} not found in any slice")
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
            f"{_labels(at_end)} found up to the end of the volume (slice 0 or {n_slices - 1}): cut "
            "off there, or taken for something else"
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


def _labels(values: Sequence[int]) -> str:
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
    """Labels whose support mask is not connected, as of lesions or both lungs."""
    connected = np.ones((3, 3))  # diagonally too
    return sorted(
        organ
        for organ, task in episode.organs.items()
        if any(label(mask, connected)[1] > 1 for mask in task.support_masks)
    )
