"""Prepare all scans of a raw dataset: in parallel, each whole or not at all, done ones kept."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes

from data_prep.archive import raw_folder
from data_prep.contact_sheet import draw_contact_sheet
from data_prep.source import Source
from fsmis.data.dataset import FILE_NAME
from fsmis.data.nifti import write_mask, write_volume
from fsmis.data.verify import Manifest
from fsmis.errors import UserError
from fsmis.files import counted, sha256


@dataclass
class Outcome:
    """What became of the scans, by id.

    Attributes:
        total: number of published scans in the raw data.
        kept: those that existed, from the same files with the same settings.
        failed: reason by scan id.
        losses: what the preparation took from the labels, by scan id, each with what to do.
        absent: published scans that the raw data lacks.
    """

    total: int
    absent: list[str]
    prepared: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    losses: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One scan to prepare.

    Attributes:
        files: its raw files.
        root: folder from which their names in the manifest start.
        before: its entry in the manifest of an earlier call with the same settings.
    """

    source: Source
    scan_id: str
    files: Sequence[Path]
    root: Path
    out: Path
    before: dict[str, Any] | None


def prepare(
    source: Source,
    raw: Path,
    out: Path,
    workers: int,
    advance: Callable[[str, Outcome], None],
) -> Outcome:
    """Prepare the published scans found in ``raw``, a folder or zip; failures do not stop others.

    Writes ``image_<id>.nii.gz``, ``label_<id>.nii.gz``, ``manifest.json`` and ``contact_sheet.png``
    to ``out``. ``workers`` counts processes (1: this one); ``advance`` is called after each scan
    with its id. Raises UserError where ``raw`` holds no scan or ``out`` is not for it.
    """
    if workers < 1:
        raise UserError(f"--workers={workers}: choose 1 or more")
    if raw.is_dir() and out.resolve().is_relative_to(raw.resolve()):
        raise UserError(
            f"--out={out}: lies in --raw={raw}, whose scans it may replace; choose another"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out={out}: cannot be made ({error.strerror}); choose another"
        ) from error
    before, manifest = _manifests(source, out)
    with raw_folder(raw, out, source.wanted, source.max_unpacked_gb) as root:
        try:
            found = source.find(root)
        except UserError as error:
            packed = next(raw.rglob("*.zip"), None) if raw.is_dir() else None
            hint = f"; {packed} is still packed, unpack it or give it as --raw" if packed else ""
            raise UserError(f"--raw={raw}: {error}{hint}") from error
        wanted = source.scan_ids or sorted(found, key=counted)
        scans = {scan_id: found[scan_id] for scan_id in wanted if scan_id in found}
        if not scans:
            raise UserError(
                f"--raw={raw}: scans {', '.join(found)} are none of {source.dataset} with labels"
            )
        _refuse_foreign(out, scans.keys() | manifest.scans.keys())
        tasks = [
            Task(source, scan_id, files, root, out, before.get(scan_id))
            for scan_id, files in scans.items()
        ]
        outcome = Outcome(len(tasks), [i for i in source.scan_ids if i not in found])
        for scan_id, result in _results(tasks, workers):
            if isinstance(result, UserError):
                outcome.failed[scan_id] = str(result)
            elif result is None:
                outcome.kept.append(scan_id)
            else:
                outcome.prepared.append(scan_id)
                manifest.add(scan_id, result)
            losses = manifest.scans.get(scan_id, {}).get("losses")
            if losses and scan_id not in outcome.failed:
                outcome.losses[scan_id] = losses
            advance(scan_id, outcome)
    whole = [
        i for i, entry in manifest.scans.items() if all((out / f).is_file() for f in entry["files"])
    ]
    if whole:
        draw_contact_sheet(out / "contact_sheet.png", out, whole)
    return outcome


def prepare_scan(task: Task) -> dict[str, Any] | None:
    """Prepare one scan; its manifest entry, or None where it exists from the same files already.

    Raises UserError as ``Source.prepare``, and what was there stays; or where it cannot be written,
    and nothing of it stays.
    """
    # the processes share the work, so ITK's own threads would only get in each other's way
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    raw = {path.relative_to(task.root).as_posix(): sha256(path) for path in task.files}
    image_path, label_path = (
        task.out / f"{kind}_{task.scan_id}.nii.gz" for kind in ("image", "label")
    )
    if task.before is not None and task.before["source"] == raw:
        paths = [task.out / name for name in task.before["files"]]
        if task.before["files"] == {path.name: sha256(path) for path in paths if path.is_file()}:
            return None
    try:
        scan = task.source.prepare(task.files)
    except (RuntimeError, ValueError, MemoryError) as error:  # as SimpleITK and NumPy raise them
        reason = (str(error) or "out of memory").splitlines()[-1]
        raise UserError(
            f"{task.files[0]}: cannot be prepared ({reason}); check its size and voxel size"
        ) from error
    try:
        write_volume(image_path, scan.image, scan.affine)
        write_mask(label_path, scan.label, scan.affine)
    except UserError:
        image_path.unlink(missing_ok=True)
        label_path.unlink(missing_ok=True)
        raise
    values, voxels = np.unique(scan.label, return_counts=True)
    return {
        "source": raw,
        "files": {path.name: sha256(path) for path in (image_path, label_path)},
        "spacing": [round(float(mm), 4) for mm in voxel_sizes(scan.affine)[::-1]],
        "size": list(scan.image.shape),
        "voxels": {str(value): int(n) for value, n in zip(values, voxels, strict=True) if value},
        **scan.notes,
    }


def _results(
    tasks: Sequence[Task], workers: int
) -> Iterator[tuple[str, dict[str, Any] | UserError | None]]:
    """What ``prepare_scan`` returned or raised for each scan, as they finish."""
    if workers == 1:
        for task in tasks:
            try:
                yield task.scan_id, prepare_scan(task)
            except UserError as error:
                yield task.scan_id, error
        return
    # spawned: a forked process may wait for ever for the threads that ITK had in its parent
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        futures = {pool.submit(prepare_scan, task): task.scan_id for task in tasks}
        try:
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except UserError as error:
                    yield futures[future], error
                except BrokenProcessPool:
                    reason = "its process was killed, out of memory? choose fewer --workers"
                    yield futures[future], UserError(reason)
        finally:
            pool.shutdown(cancel_futures=True)


def _manifests(source: Source, out: Path) -> tuple[dict[str, Any], Manifest]:
    """Earlier entries that may be kept, and the manifest to write.

    Raises UserError where the folder belongs to another dataset.
    """
    manifest = Manifest.read(out)
    if manifest is None:
        return {}, Manifest(out, source.dataset, source.settings, {})
    if manifest.dataset != source.dataset:
        raise UserError(
            f"--out={out}: holds {manifest.dataset}, not {source.dataset}; choose another folder"
        )
    if manifest.settings != source.settings:
        return {}, Manifest(out, source.dataset, source.settings, {})
    return dict(manifest.scans), manifest


def _refuse_foreign(out: Path, scan_ids: set[str]) -> None:
    for path in sorted(out.iterdir()):
        match = FILE_NAME.fullmatch(path.name)
        if match and match[2] not in scan_ids:
            raise UserError(f"{path}: not of this dataset; choose an empty folder for --out")
