"""The YAML of a dataset of one's own, and prepared scans without one."""

import json
import re
from pathlib import Path
from typing import Any

import hydra.utils
import numpy as np
from hydra import compose
from hydra.errors import MissingConfigException

from fsmis.cli import CONF_DIR
from fsmis.data.dataset import FILE_NAME, Dataset
from fsmis.data.nifti import read_volume
from fsmis.errors import UserError
from fsmis.settings import composing

BASE = "own"  # conf/dataset/own.yaml, the other YAMLs' defaults
NO_LABEL = {"organ": 1}  # where no label can be read: what is wrong is told scan by scan


def dataset_of(yaml: str, root: Path, **changes: Any) -> Dataset:
    """The dataset of ``conf/dataset/<yaml>.yaml`` in this folder; UserError without such a YAML."""
    try:
        with composing():
            config = compose("config", [f"dataset={yaml}"]).dataset
    except MissingConfigException as error:
        known = sorted(path.stem for path in (CONF_DIR / "dataset").glob("*.yaml"))
        raise UserError(
            f"--dataset={yaml}: no conf/dataset/{yaml}.yaml; there are {', '.join(known)}"
        ) from error
    return hydra.utils.instantiate(config, root=root, **changes)


def without_yaml(root: Path) -> Dataset:
    """The dataset of a folder without a YAML: every label value is one of its organs."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", root.resolve().name).strip("_-") or "mine"
    name = f"scans_{name}" if name.isdigit() else name  # a number is no name to Hydra
    organs = {f"organ_{value}": value for value in _label_values(root)}
    return dataset_of(BASE, root, name=name, organs=organs or NO_LABEL)


def own_yaml(dataset: Dataset, name: str) -> str:
    organs = ", ".join(f"{organ}: {value}" for organ, value in dataset.organs.items())
    return (
        f"defaults: [{BASE}]\n"
        f"name: {name}\n"
        f"root: {_quoted(dataset.root.resolve())}\n"
        f"organs: {{{organs}}}  # their names, and the label values that are scored\n"
    )


def _quoted(path: Path) -> str:
    """A path as YAML and OmegaConf read it back, whatever is in it."""
    text = str(path).replace("${", "\\${")
    return (
        text
        if re.fullmatch(r"[\w./-]+( [\w./-]+)*", text)
        else json.dumps(text, ensure_ascii=False)
    )


def _label_values(root: Path) -> list[int]:
    """Whole label values above 0 that occur, ascending; unreadable files are skipped."""
    values: set[int] = set()
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        match = FILE_NAME.fullmatch(path.name)
        if match is None or match[1] != "label":
            continue
        try:
            found = np.unique(read_volume(path)[0])
        except UserError:  # told with the scan
            continue
        values |= {round(float(value)) for value in found}
    return sorted(value for value in values if value > 0)
