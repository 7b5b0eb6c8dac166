"""Label whole new volumes from a labelled slice, or a few.

    python -m fsmis segment --support-image s.nii.gz --support-mask m.nii.gz \
        --query q.nii.gz --output out.nii.gz [method=registration] [support_set.count=8]

Supports and query may differ in orientation, voxel size, field of view and number of slices. The
output lies on the query's own voxels and has the label values of the mask. Where a method's labels
overlap, as they do not by default (``method.non_overlap``), the one with the smaller area in the
labelled slice stands. The work is that of ``fsmis.api``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.progress import Progress

from fsmis.cli import SOME_FAILED, command_line, console, errors
from fsmis.data.dicom import series_files
from fsmis.data.nifti import NIFTI
from fsmis.data.volume import DICOM_SEG, queries_in, require_folder, require_target, require_there
from fsmis.errors import UserError
from fsmis.reporting.display import segmenting, time_left
from fsmis.reporting.findings import SUMMARY, LabelledFolder, labels_in_words, made_from
from fsmis.settings import SegmentSettings
from fsmis.source import source_hash

if TYPE_CHECKING:
    from fsmis.api import Prepared, Segmentation, VolumeSegmenter

FIGURES = (".png", ".pdf", ".svg")
# Settings that move no label, but for a device's rounding:
OF_OUTPUT = ("device", "threads", "dicom_seg", "figure_slices", "doubt_below", "unlike")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one line on bad input, 1 where some queries of a folder
    failed."""
    options = _parser().parse_intermixed_args(arguments)
    with command_line():
        from fsmis.api import VolumeSegmenter  # slow to load: help and wrong options do not wait

        images, masks, query = options.support_image, options.support_mask, options.query
        require_there([*images, *masks, query])
        is_folder = query.is_dir() and not series_files(query)
        if is_folder:
            require_folder("--output", options.output, query)
            if options.figure:
                require_folder("--figure", options.figure, query)
        else:
            inputs = [*images, *masks, query]
            require_target("--output", options.output, (*NIFTI, DICOM_SEG), inputs)
            if options.figure:
                require_target("--figure", options.figure, FIGURES, inputs)
        slices = options.support_slice or None
        if slices is not None and len(images) == 1:
            slices = [position for given in slices for position in given]
        segmenter = VolumeSegmenter(images, masks, support_slice=slices, settings=options.overrides)
        if is_folder:
            _label_folder(segmenter, [*images, *masks], options)
        else:
            _label_one(segmenter, query, options.output, options.figure)


def _label_one(segmenter: VolumeSegmenter, query: Path, output: Path, figure: Path | None) -> None:
    prepared = segmenter.prepare(query)
    prepared.query.require_output(output)
    n_slices, height, width = prepared.query.axial.pixels.shape
    _say_supports(segmenter)
    console.print(
        f"query: {n_slices} axial slices of {height} x {width} pixels in {query}\n"
        f"intensities: {prepared.intensities}\n"
        f"segmenting at {prepared.grid.pixel_mm:.2f} mm a pixel with "
        f"{segmenter.settings.method._target_}"
    )
    _say_notes(prepared.notes)
    with time_left() as bar:
        answer = _answer(segmenter, prepared, bar, f"segmenting {n_slices} slices")
    _say_notes(answer.notes[len(prepared.notes) :])
    for found in answer.found:
        console.print(str(found))
    prepared.query.write(output, answer.labels)
    console.print(output)
    if figure:
        _draw(figure, prepared, answer, segmenter)
        console.print(figure)


def _label_folder(
    segmenter: VolumeSegmenter, supports: Sequence[Path], options: argparse.Namespace
) -> None:
    """Label the queries of a folder that are not finished, one output each, and sum them up."""
    queries = queries_in(options.query, [*supports, options.output])
    for folder in filter(None, (options.output, options.figure)):
        folder.mkdir(exist_ok=True)
    outputs = LabelledFolder.open(options.output)
    identity = _identity(segmenter, supports)
    ending = {name: _ending(path, segmenter) for name, path in queries.items()}
    outputs.claim((name + ending[name] for name in queries), supports)
    made: dict[str, str] = {}
    failed = []
    for name, path in queries.items():
        try:
            made[name] = made_from(identity, [path])
        except UserError as error:
            failed.append(name)
            errors.print(f"{name} failed: {error}")
    state = {name: outputs.state(name, name + ending[name], made[name]) for name in made}
    figures = {name: options.figure / f"{name}.png" for name in queries if options.figure}
    undrawn = [name for name in figures if not figures[name].is_file()]
    pending = [
        name
        for name in made
        if state[name] in ("missing", "outdated") or (state[name] == "finished" and name in undrawn)
    ]
    _say_supports(segmenter)
    console.print(f"queries: {len(queries)} in {options.query}, {len(pending)} to label")
    if outdated := [name for name in pending if state[name] == "outdated"]:
        errors.print(
            f"note: {', '.join(outdated)} are labelled anew: they were made from other supports, "
            "settings, code or files"
        )
    if changed := [name for name in made if state[name] == "changed"]:
        errors.print(
            f"note: {', '.join(changed)} were changed since they were labelled, and stay; remove "
            "them to label them anew"
        )
    with time_left() as bar:
        total = bar.add_task("queries", total=len(queries), completed=len(queries) - len(pending))
        for name in pending:
            output = options.output / f"{name}{ending[name]}"
            try:
                prepared = segmenter.prepare(queries[name])
                prepared.query.require_output(output)
                answer = _answer(segmenter, prepared, bar, name)
                if name in figures:
                    _draw(figures[name], prepared, answer, segmenter)
                empty = output.suffix == DICOM_SEG and not answer.labels.any()
                if not empty:
                    prepared.query.write(output, answer.labels)
            except UserError as error:
                failed.append(name)
                if state[name] != "finished":  # what is there stays
                    outputs.add_failed(name, made[name], str(error))
                errors.print(f"{name} failed: {error}")
            else:
                written = None if empty else output.name
                outputs.add(name, written, made[name], answer.found, answer.notes)
                console.print(f"{name}: {'; '.join(map(str, answer.found))}")
                _say_notes(answer.notes)
            bar.advance(total)
    console.print(options.output / SUMMARY)
    if failed:
        errors.print(f"{len(failed)} of {len(queries)} queries failed: {', '.join(failed)}")
        raise SystemExit(SOME_FAILED)


def _answer(
    segmenter: VolumeSegmenter, prepared: Prepared, bar: Progress, text: str
) -> Segmentation:
    with segmenting(bar, text, segmenter.method, segmenter.settings.method, prepared.episode):
        return segmenter.answer(prepared)


def _draw(path: Path, prepared: Prepared, answer: Segmentation, segmenter: VolumeSegmenter) -> None:
    from fsmis.reporting.figures import draw_preview  # slow to load, and not always used

    draw_preview(
        path,
        prepared.episode,
        answer.labels,
        prepared.query.axial,
        prepared.grid,
        segmenter.settings.figure_slices,
    )


def _identity(segmenter: VolumeSegmenter, supports: Sequence[Path]) -> str:
    """What an output depends on beside its query, in hex digits."""
    from fsmis.runs.variant import method_identity  # slow to load, and not always used

    settings: Any = OmegaConf.to_container(segmenter.settings)
    known = [field.name for field in fields(SegmentSettings) if field.name not in OF_OUTPUT]
    moving = {name: settings[name] for name in known}
    moving["method"] = method_identity(segmenter.settings)  # groups count as far as it reads them
    slices = [[some.stored_position for some in of] for of in segmenter.slices]
    return made_from(f"{moving} {slices} {source_hash(type(segmenter))}", supports)


def _ending(query: Path, segmenter: VolumeSegmenter) -> str:
    return DICOM_SEG if query.is_dir() and segmenter.settings.dicom_seg else NIFTI[-1]


def _say_supports(segmenter: VolumeSegmenter) -> None:
    for volume, slices in zip(segmenter.supports, segmenter.slices, strict=True):
        positions = ", ".join(
            f"{some.stored_position} ({labels_in_words(some.values)})" for some in slices
        )
        plural = "s" if len(slices) > 1 else ""
        console.print(f"support: slice{plural} {positions} of {volume.name}")


def _say_notes(notes: Sequence[str]) -> None:
    for note in notes:
        errors.print(f"note: {note}")


def _slices(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fsmis segment",
        description="Label whole new volumes from a labelled slice, or a few. The output lies on "
        "the query's own voxels and has the label values of the mask; where a method's labels "
        "overlap, as they do not by default, the one with the smaller area in the labelled slice "
        "stands. Slices are axial, whatever the orientation in which a file is stored.",
        epilog="Not for clinical use: look at every result.",
    )
    nifti = "NIfTI, .nii or .nii.gz"
    parser.add_argument(
        "--support-image",
        type=Path,
        action="append",
        required=True,
        metavar="PATH",
        help=f"labelled scan ({nifti}, or a folder with one DICOM series): a volume or one slice; "
        "repeated for several",
    )
    parser.add_argument(
        "--support-mask",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help=f"its labels ({nifti}), whole numbers, 0 for background: a volume of the same shape, "
        "of which support_slices=N of each label are used, or one slice; one for each image, in "
        "their order",
    )
    parser.add_argument(
        "--support-slice",
        type=_slices,
        action="append",
        metavar="K[,K...]",
        help="slices that are used, from 0 along the axial axis of the support image as the file "
        "stores it (default: support_slices=N of each label, spread over its extent; for a mask of "
        "one slice, the one on which its affine places it); one for each image, in their order",
    )
    parser.add_argument(
        "--query",
        type=Path,
        required=True,
        metavar="PATH",
        help=f"volume to label ({nifti}, or a folder with one DICOM series), of the same modality; "
        "or a folder of such files or folders",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help=f"label map to write ({nifti}, or .dcm for a DICOM-SEG of a DICOM query); replaced if "
        "it exists. Of a folder of queries: a folder, made if need be, for a label map each and "
        "summary.csv; what is finished there stays",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="PATH",
        help="preview to draw (.png, .pdf or .svg); of a folder of queries: a folder",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of conf/segment.yaml, e.g. method=registration, support_set.count=8, or "
        "window=[-125,275] (HU, for an abdominal CT)",
    )
    return parser


if __name__ == "__main__":
    main()
