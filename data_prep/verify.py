"""Check a prepared folder: ``python -m data_prep.verify DIR``; exit code 0 if nothing is wrong.

A folder of no known dataset is one of its own: the YAML that it needs in ``conf/dataset`` is
printed.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from data_prep.cli import load_source
from data_prep.own_dataset import dataset_of, own_yaml, without_yaml
from data_prep.source import Source
from fsmis.cli import CONF_DIR, SOME_FAILED, command_line, console, errors
from fsmis.data.dataset import FILE_NAME, Dataset
from fsmis.data.verify import (
    Finding,
    Manifest,
    check_axes,
    check_manifest,
    check_organs,
    check_scan,
)
from fsmis.errors import UserError
from fsmis.files import write_atomic

SOURCES = {"chaos_mri": "chaos", "synapse_ct": "synapse", "cmr": "cmr"}  # in conf/data_prep


@dataclass
class Verified:
    """What was seen of a folder: findings by scan, and problems of the folder as a whole.

    ``own`` is the dataset where it is not a known one and has no YAML yet.
    """

    findings: dict[str, Finding]
    problems: list[str]
    own: Dataset | None = None


def verify(
    folder: Path, name: str | None = None, subset: bool = False
) -> tuple[dict[str, Finding], list[str]]:
    """What ``inspect`` finds of each scan, and of the folder as a whole."""
    verified = inspect(folder, name, subset)
    return verified.findings, verified.problems


def inspect(folder: Path, name: str | None = None, subset: bool = False) -> Verified:
    """Check every scan of a prepared folder of ``image_<id>.nii.gz`` and ``label_<id>.nii.gz``.

    ``name`` is the dataset in ``conf/dataset``; by default that of the manifest, or without one,
    the one with these scan ids, or a new one. With ``subset`` published scans may be absent. Raises
    UserError where the folder holds no dataset that could be checked.
    """
    if folder.is_file():
        raise UserError(f"{folder}: a file; give the folder that holds the prepared scans")
    source = _source(folder, Manifest.read(folder), name)
    if source is not None:
        # two folds of any scans will do: whether they are complete is told by their ids
        dataset = dataset_of(source.dataset, folder, fold_starts=2)
    elif name is not None:
        dataset = dataset_of(name, folder)
    else:
        dataset = without_yaml(folder)
    findings = {i: _finding(dataset, i) for i in dataset.scan_ids}
    problems = check_manifest(folder) + check_axes(dataset, findings)
    found = {organ for finding in findings.values() for organ in finding.organ_ml}
    problems += check_organs(dataset, found)
    if source is None:
        return Verified(findings, problems, dataset if name is None else None)
    absent = [i for i in source.scan_ids if i not in findings]
    if absent and not subset:
        problems.append(
            f"scans {', '.join(absent)} of {source.dataset} are not there, so the folds would "
            "shift; complete the raw data and prepare it again (--subset accepts a part)"
        )
    if unknown := [i for i in findings if i not in source.scan_ids]:
        problems.append(f"scans {', '.join(unknown)} are none of {source.dataset}; remove them")
    return Verified(findings, problems)


def _source(folder: Path, manifest: Manifest | None, name: str | None) -> Source | None:
    """The known dataset that a folder holds; None for any other."""
    sources = {dataset: load_source(file) for dataset, file in SOURCES.items()}
    if manifest is not None:
        if manifest.dataset in sources and name not in (None, manifest.dataset):
            raise UserError(f"{folder}: holds {manifest.dataset}, not {name}")
        return sources.get(manifest.dataset)
    if name is not None:
        return sources.get(name)
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = {match[2].lstrip("0") for file in files if (match := FILE_NAME.fullmatch(file))}
    for source in sources.values():
        if found == set(source.scan_ids):
            return source
    return None


def _tell(dataset: Dataset, path: Path | None) -> None:
    """Print the YAML of a dataset of one's own, and write it to a new file if one is given.

    Raises UserError where the file exists or cannot be written.
    """
    name = dataset.name if path is None else path.stem
    yaml = own_yaml(dataset, name)
    where = path or Path("conf/dataset") / f"{name}.yaml"
    shipped = where.resolve().parent == (CONF_DIR / "dataset").resolve() or path is None
    found = "" if shipped else f" --config-dir {where.parent.parent}"
    if path is not None:
        if path.exists():
            raise UserError(f"--yaml={path}: is there already; choose another name or remove it")
        write_atomic(path, yaml.encode())
    console.print(
        f"a dataset of its own (--dataset says otherwise: {', '.join(SOURCES)}); as {where}, with "
        f"the organs' names, `python -m fsmis run{found} dataset={name}` runs on it:\n"
    )
    console.print(yaml, markup=False, highlight=False, soft_wrap=True)


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
    parser.add_argument(
        "--dataset",
        help="name of a YAML in conf/dataset; default: told by its manifest or ids, else its own",
    )
    parser.add_argument("--subset", action="store_true", help="published scans may be absent")
    parser.add_argument(
        "--yaml", type=Path, help="new file for the YAML of a dataset of your own: conf/dataset/X"
    )
    options = parser.parse_args(arguments)
    with command_line():
        verified = inspect(options.folder, options.dataset, options.subset)
    findings, problems = verified.findings, verified.problems
    console.print(_table(findings))
    if verified.own is not None:
        with command_line():
            _tell(verified.own, options.yaml)
    problems += [f"scan {i}: {p}" for i, finding in findings.items() for p in finding.problems]
    for problem in problems:
        errors.print(problem)
    if problems:
        raise SystemExit(SOME_FAILED)
    console.print(f"{options.folder}: {len(findings)} scans, nothing wrong")


if __name__ == "__main__":
    main()
