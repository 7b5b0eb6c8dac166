"""Check a prepared folder: ``python -m data_prep.verify DIR``; exit code 0 if nothing is wrong."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import hydra.utils
from omegaconf import OmegaConf
from rich.box import SIMPLE_HEAD
from rich.table import Table

from data_prep.cli import load_source
from data_prep.source import Source
from fsmis.cli import CONF_DIR, SOME_FAILED, command_line
from fsmis.data.manifest import Manifest
from fsmis.data.verify import Finding, check_manifest, check_organs, check_scan
from fsmis.datasets import FILE_NAME, Dataset
from fsmis.errors import UserError
from fsmis.runs.display import console, errors

SOURCES = {"chaos_mri": "chaos", "synapse_ct": "synapse", "cmr": "cmr"}  # in conf/data_prep


def verify(
    folder: Path, name: str | None = None, subset: bool = False
) -> tuple[dict[str, Finding], list[str]]:
    """Check every scan of a prepared folder.

    Args:
        folder: of ``image_<id>.nii.gz`` and ``label_<id>.nii.gz``.
        name: of the dataset; by default that of the manifest, or where there is none, the one with
            these scan ids.
        subset: published scans may be absent.

    Returns:
        What was seen of each scan, and what is wrong with the folder as a whole.

    Raises:
        UserError: the folder holds no dataset that could be checked.
    """
    source = _source(folder, Manifest.read(folder), name)
    config = OmegaConf.load(CONF_DIR / "dataset" / f"{source.dataset}.yaml")
    # two folds of any scans will do: whether they are complete is told by their ids
    dataset: Dataset = hydra.utils.instantiate(config, root=folder, fold_starts=2)
    findings = {i: _finding(dataset, i) for i in dataset.scan_ids}

    problems = check_manifest(folder)
    found = {organ for finding in findings.values() for organ in finding.organ_ml}
    problems += check_organs(dataset, found)
    absent = [i for i in source.scan_ids if i not in findings]
    if absent and not subset:
        problems.append(
            f"scans {', '.join(absent)} of {source.dataset} are not there, so the folds would "
            "shift; complete the raw data and prepare it again (--subset accepts a part)"
        )
    if unknown := [i for i in findings if i not in source.scan_ids]:
        problems.append(f"scans {', '.join(unknown)} are none of {source.dataset}; remove them")
    return findings, problems


def _source(folder: Path, manifest: Manifest | None, name: str | None) -> Source:
    sources = {dataset: load_source(file) for dataset, file in SOURCES.items()}
    if manifest is not None:
        if manifest.dataset not in sources or name not in (None, manifest.dataset):
            raise UserError(f"{folder}: holds {manifest.dataset}, not {name or 'a known dataset'}")
        return sources[manifest.dataset]
    if name is not None:
        return sources[name]
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = {match[2].lstrip("0") for file in files if (match := FILE_NAME.fullmatch(file))}
    for source in sources.values():
        if found == set(source.scan_ids):
            return source
    raise UserError(
        f"{folder}: no manifest.json, and its {len(found)} scans are not all of one dataset; say "
        f"--dataset ({', '.join(sources)}) or prepare it (python -m data_prep.chaos --help)"
    )


def _finding(dataset: Dataset, scan_id: str) -> Finding:
    try:
        return check_scan(dataset, scan_id)
    except UserError as error:
        return Finding(problems=[str(error)])


def _table(findings: Mapping[str, Finding]) -> Table:
    organs = list(
        dict.fromkeys(organ for finding in findings.values() for organ in finding.organ_ml)
    )
    table = Table(box=SIMPLE_HEAD)
    for column in ("scan", "z, y, x", "mm", "axes", *(f"{organ} ml" for organ in organs)):
        table.add_column(column, justify="right")
    table.add_column("state")
    for scan_id, finding in findings.items():
        volumes = (finding.organ_ml.get(organ) for organ in organs)
        cells = ("absent" if volume is None else f"{volume:.0f}" for volume in volumes)
        state = "bad" if finding.problems else "ok"
        table.add_row(scan_id, finding.size, finding.spacing, finding.axes, *cells, state)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit code 1 where something is wrong, 2 where nothing can be checked."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.verify", description="Check a folder of prepared scans."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dataset", choices=SOURCES, help="default: told by its manifest or ids")
    parser.add_argument("--subset", action="store_true", help="published scans may be absent")
    options = parser.parse_args(arguments)
    with command_line():
        findings, problems = verify(options.folder, options.dataset, options.subset)
    console.print(_table(findings))
    problems += [f"scan {i}: {p}" for i, finding in findings.items() for p in finding.problems]
    for problem in problems:
        errors.print(problem)
    if problems:
        raise SystemExit(SOME_FAILED)
    console.print(f"{options.folder}: {len(findings)} scans, nothing wrong")


if __name__ == "__main__":
    main()
