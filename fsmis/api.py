"""Whole volumes from a few labelled slices, in Python: what ``python -m fsmis segment`` shells.

from fsmis import VolumeSegmenter

segmenter = VolumeSegmenter("s.nii.gz", "m.nii.gz")
for query in ("q1.nii.gz", "q2.nii.gz"):
    labels = segmenter.segment(query)  # a nibabel image on the query's own voxels
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from nibabel.spatialimages import SpatialImage

from fsmis.cli import user_errors
from fsmis.data.dataset import require_percentiles
from fsmis.data.geometry import CommonGrid
from fsmis.data.labelled_slice import LabelledSlice, labelled_slices
from fsmis.data.protocol import Episode
from fsmis.data.volume import Given, Volume
from fsmis.errors import UserError
from fsmis.methods import Method
from fsmis.methods.prompted import PromptedMethod, serving
from fsmis.pipeline.whole_volume import (
    Intensities,
    is_ct,
    labels_on_query,
    pair,
    window_of,
)
from fsmis.reporting.findings import Found, doubts, found_in, notes_on_inputs
from fsmis.settings import limit_threads, settings_of


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A labelled query.

    Attributes:
        query: the volume.
        labels: uint8 or uint16 [Z, H, W] on the voxels of ``query.axial``.
        found: of each label, ascending.
        notes: what a user should know before believing it, one line each.
    """

    query: Volume
    labels: np.ndarray
    found: list[Found]
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A query that is ready to be segmented.

    Attributes:
        query: the volume.
        grid: of the episode.
        episode: labelled slices and query on a common grid.
        intensities: which are kept, in words.
        notes: what a user should know of the inputs, one line each.
    """

    query: Volume
    grid: CommonGrid
    episode: Episode
    intensities: str
    notes: list[str]


class VolumeSegmenter:
    """Labels whole volumes; the supports and the model stay loaded for many queries.

        from fsmis import VolumeSegmenter
        segmenter = VolumeSegmenter("s.nii.gz", "m.nii.gz", settings=["device=cuda"])
        first = segmenter.segment("q1.nii.gz")
        second = segmenter.segment(array, spacing=(5.0, 1.2, 1.2))  # [Z, H, W], mm

    Args:
        support_image: a labelled scan: path of a NIfTI file or of a folder with one DICOM series, a
            nibabel image, or an array [Z, H, W] (row 0 posterior, column 0 to the patient's right,
            slice 0 at the feet; alike in all arrays is what counts). A list for several.
        support_label: whole numbers on the same voxels, or on one slice of them, 0 for background;
            a list likewise.
        support_spacing: voxel size in mm (z, y, x) of supports that are arrays.
        support_slice: the slice that counts, or several, from 0 along the axial axis of the support
            as it is stored; of several supports a list with an entry for each. None: see
            ``support_slices`` of ``conf/segment.yaml``.
        settings: overrides of ``conf/segment.yaml``, such as ``"method=registration"``.

    Raises:
        UserError: a support or a setting cannot be used.
    """

    def __init__(
        self,
        support_image: Given | Sequence[Given],
        support_label: Given | Sequence[Given],
        *,
        support_spacing: Sequence[float] | None = None,
        support_slice: int | Sequence[int] | Sequence[int | Sequence[int] | None] | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        self.settings = settings_of(settings)
        require_percentiles(self.settings.percentiles)
        limit_threads(self.settings.threads)
        images, masks = _listed(support_image), _listed(support_label)
        self._given = [*images, *masks]
        if len(images) != len(masks) or not images:
            raise UserError(
                f"{len(images)} support images with {len(masks)} masks; give a mask for each image"
            )
        wanted: Any = support_slice
        if isinstance(wanted, np.ndarray):
            wanted = wanted.tolist()
        for_each = isinstance(wanted, Sequence) and all(
            isinstance(some, Sequence | np.ndarray | None) for some in wanted
        )
        if wanted is None or (len(images) == 1 and not for_each):
            wanted = [wanted] * len(images)
        if not isinstance(wanted, Sequence) or len(wanted) != len(images):
            raise UserError(
                f"support slices {support_slice} for {len(images)} support images; give an entry "
                "for each image, or none"
            )
        self.supports: list[Volume] = []
        self.slices: list[list[LabelledSlice]] = []
        for given, given_mask, some in zip(images, masks, wanted, strict=True):
            image = Volume.read(given, "support image", support_spacing)
            mask = Volume.read(given_mask, "support mask", support_spacing)
            single = isinstance(some, Integral)  # NumPy's too
            indices = [] if some is None else [int(some)] if single else [int(z) for z in some]
            self.supports.append(image)
            self.slices.append(
                labelled_slices(
                    image, mask, indices, self.settings.support_slices, self.settings.support_area
                )
            )

    @cached_property
    def method(self) -> Method:
        """Built when it is first asked for; UserError where its settings or weights cannot be
        used."""
        with user_errors():
            method: Method = instantiate(self.settings.method)
        return method

    @cached_property
    def labels(self) -> list[int]:
        """Label values that are looked for, ascending."""
        return sorted({value for some in self._labelled for value in some.values})

    def segment(
        self,
        query: Given,
        *,
        spacing: Sequence[float] | None = None,
        output: str | Path | None = None,
    ) -> SpatialImage | np.ndarray:
        """Label a query; what a user should know before believing it is a warning.

        Args:
            query: a volume of the same modality, of the kinds that supports are.
            spacing: voxel size in mm (z, y, x) of a query that is an array.
            output: file to write beside, ``.nii``, ``.nii.gz``, or ``.dcm`` for a DICOM-SEG of a
                DICOM query.

        Returns:
            Label values on the query's voxels, uint8 (uint16 where one exceeds 255): an array of
            its shape for an array, else a nibabel image with its affine, qform and sform.

        Raises:
            UserError: the query cannot be used, or segmenting it failed.
        """
        prepared = self.prepare(query, spacing)
        if output is not None:
            prepared.query.require_output(Path(output), self._given)
        answer = self.answer(prepared)
        if output is not None:
            answer.query.write(Path(output), answer.labels)
        for note in answer.notes:
            warnings.warn(note, stacklevel=2)
        return answer.query.in_kind(answer.labels)

    def prepare(self, query: Given, spacing: Sequence[float] | None = None) -> Prepared:
        """Read a query and bring it to one grid with the labelled slices; see ``segment``."""
        volume = Volume.read(query, "query", spacing)
        cfg = self.settings
        volumes = [*self.supports, volume]
        grid = CommonGrid.around([some.axial for some in volumes], cfg.size)
        window, chosen = cfg.window, ""
        if window is None and cfg.auto_window and all(is_ct(some.axial) for some in volumes):
            window = window_of(self._labelled)
            chosen = ", chosen from the labels and their surroundings"
        intensities = "all" if window is None else f"window=[{window[0]:g},{window[1]:g}]"
        scaling = Intensities(window, cfg.percentiles)
        episode = pair(self._labelled, volume.axial, grid, scaling)
        notes = notes_on_inputs(
            self.supports,
            volume,
            episode,
            unlike=cfg.unlike,
            one_part=bool(cfg.method.get("largest_component")),
        )
        if unseen := sorted(set(self.labels) - set(map(int, episode.organs))):
            notes.append(
                f"labels {', '.join(map(str, unseen))} cover less than a pixel of "
                f"{grid.pixel_mm:.2f} mm and are not looked for; raise size"
            )
        elsewhere = {value for some in self._labelled for value in some.elsewhere}
        if missed := sorted(elsewhere - set(self.labels)):
            notes.append(
                f"labels {', '.join(map(str, missed))} are in other slices of the mask alone and "
                "are not looked for"
            )
        return Prepared(volume, grid, episode, intensities + chosen, notes)

    def answer(self, prepared: Prepared) -> Segmentation:
        """Segment a prepared query; see ``segment``."""
        query, grid, method = prepared.query, prepared.grid, self.method
        try:
            masks = method.segment(serving(method, prepared.episode))
        except (RuntimeError, MemoryError) as error:  # such as a GPU out of memory
            raise UserError(
                f"{query.name}: segmenting failed ({error}); try device=cpu, a smaller segmenter "
                "or another method"
            ) from error
        labels = labels_on_query(masks, query.axial, grid)
        found = found_in(labels, query, self.labels, method.confidence)
        doubtful = doubts(found, len(labels), self.settings.doubt_below)
        notes = [*prepared.notes, *(f"{query.name}: {doubt}" for doubt in doubtful)]
        if isinstance(method, PromptedMethod) and method.scale.found != 1:
            notes.append(
                f"{query.name}: the support was taken at {method.scale.found:g} times its size, "
                "where the model is surer; method.scale.scales=[] keeps its size"
            )
        return Segmentation(query, labels, found, notes)

    @property
    def _labelled(self) -> list[LabelledSlice]:
        return [some for of_support in self.slices for some in of_support]


def segment_volume(
    query: Given,
    support_image: Given | Sequence[Given],
    support_label: Given | Sequence[Given],
    *,
    spacing: Sequence[float] | None = None,
    support_spacing: Sequence[float] | None = None,
    support_slice: int | Sequence[int] | Sequence[int | Sequence[int] | None] | None = None,
    output: str | Path | None = None,
    settings: Sequence[str] = (),
) -> SpatialImage | np.ndarray:
    """Label one query, as a ``VolumeSegmenter`` does, whose arguments these are.

    from fsmis import segment_volume
    labels = segment_volume("q.nii.gz", "s.nii.gz", "m.nii.gz")  # a nibabel image
    labels.to_filename("out.nii.gz")
    """
    segmenter = VolumeSegmenter(
        support_image,
        support_label,
        support_spacing=support_spacing,
        support_slice=support_slice,
        settings=settings,
    )
    return segmenter.segment(query, spacing=spacing, output=output)


def _listed(given: Given | Sequence[Given]) -> list[Given]:
    single = isinstance(given, str | Path | SpatialImage | np.ndarray)
    return [given] if single else list(given)  # type: ignore[list-item, arg-type]
