"""Names that become part of a path lead nowhere else."""

import json
import shutil
from pathlib import Path

import pytest
from hydra.errors import HydraException
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fsmis.cli import CONF_DIR
from fsmis.data.verify import Manifest
from fsmis.errors import UserError
from fsmis.files import LONGEST, require_name
from fsmis.reporting.paper_table import requested
from fsmis.runs.records import Cell, RunFolder
from tests.test_run import copy_mask, run_here

GOOD = ["chaos_mri", "LV-BP", "left kidney", "2D", "Leber (re.)", "pat01", "a", "größer", "x" * 100]
BAD = ["", ".", "..", "../evil", "a/b", "a\\b", "/abs", ".hidden", "a.", " a", "a ", "a\n", "a\0b"]
BAD += ["~", "-rf", "C:", "x" * 101, "a*", "<b>", None, 3]


@pytest.mark.parametrize("name", GOOD)
def test_names_of_the_field_are_taken(name: str) -> None:
    assert require_name("dataset.name", name) == name


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_names_that_lead_elsewhere_are_refused(name: object) -> None:
    with pytest.raises(
        UserError, match=r"^dataset.name=.*it names files and folders; use up to 100"
    ):
        require_name("dataset.name", name)


@given(st.text())
def test_a_name_that_is_taken_is_one_part_of_a_path(name: str) -> None:
    try:
        require_name("organ", name)
    except UserError:
        return
    path = Path("/results") / name
    assert path.resolve().parent == Path("/results") and path.name == name
    assert 1 <= len(name) <= LONGEST and not name.startswith(".")


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "../../evil"), ("name", "/tmp/evil"), ("organs", {"../liver": 1})],
)
def test_dataset_with_such_a_name_is_refused(phantom_root: Path, key: str, value: object) -> None:
    config = OmegaConf.load(CONF_DIR / "dataset/phantom.yaml")
    with pytest.raises(HydraException, match="it names files and folders"):
        instantiate(config, root=str(phantom_root), **{key: value})


def test_scans_of_a_plan_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scan='../1': it names files"):
        Cell(0, "8", "../1")
    plan = {"cells": [{"fold": 0, "support_scan": "8", "query_scan": "../../1"}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"scan='../../1': it names files"):
        RunFolder(tmp_path).plan()


def test_files_of_a_manifest_are_checked(prepared_hearts: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared_hearts, tmp_path / "cmr")
    path = folder / "manifest.json"
    content = path.read_text()
    path.write_text(content.replace('"image_1.nii.gz"', '"../image_1.nii.gz"'))
    with pytest.raises(UserError, match=r"manifest.json: files='../image_1.nii.gz': it names"):
        Manifest.read(folder)
    path.write_text(json.dumps(json.loads(content) | {"scans": {"1": None}}))
    with pytest.raises(UserError, match=r"manifest.json: damaged"):
        Manifest.read(folder)


def test_dataset_of_a_table_is_checked(tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match=r"--dataset='../x': it names")
    with refused, requested("main_results", "", [str(tmp_path), "--dataset", "../x"]):
        pass


def test_choice_of_method_stays_in_its_folder(phantom_root: Path, tmp_path: Path) -> None:
    command = copy_mask(phantom_root, tmp_path / "runs", "method=../method/copy_mask")
    with pytest.raises((UserError, HydraException)):
        run_here(command)
    assert not list(tmp_path.iterdir())
