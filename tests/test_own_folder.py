"""A method, a matcher, a dataset and a video model in a user's folder, as the README tells."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fsmis import segment_volume
from fsmis.cli import CONF_DIR
from fsmis.segmenters import Segmenter
from tests.segmenters.engines import frames
from tests.test_run import small_root

__all__ = ["small_root"]  # a fixture

README = (CONF_DIR.parent / "README.md").read_text()
SECTIONS = README[README.index("### In a folder of your own") :].split("\n## ")[0]
FILE = re.compile(r"```(?:python|yaml)\n# (mine/\S+)\n(.*?)```", re.DOTALL)
TINY = ["segmenter.checkpoint=random", "segmenter.image_size=64", "support_set.count=3"]
TWO_LABELS = ["dataset=mine", "dataset.unscored_labels=[3,4]"]  # of the phantom's four
PHANTOM = ["dataset=phantom"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the README, where it says they lie."""
    for name, text in FILE.findall(SECTIONS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def python(folder: Path, *words: str) -> str:
    """What ``PYTHONPATH=mine python ...`` prints in that folder."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"mine:{CONF_DIR.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_has_a_file_of_each_kind(folder: Path) -> None:
    found = {path.parent.name: path.stem for path in (folder / "mine/conf").rglob("*.yaml")}
    kinds = {"method": "threshold", "matcher": "histograms", "segmenter": "nearest_mean"}
    assert found == kinds | {"dataset": "mine"}
    assert {path.stem for path in folder.glob("mine/*.py")} == set(kinds.values())


@pytest.mark.parametrize(
    "choices",
    [
        ["method=threshold", *TWO_LABELS],
        ["matcher=histograms", "+test_time=none", *TINY, *PHANTOM],
        ["segmenter=nearest_mean", "support_set.count=2", *PHANTOM],
    ],
    ids=lambda choices: choices[0],
)
def test_the_command_of_the_readme_runs_what_is_there(
    choices: list[str], folder: Path, small_root: Path
) -> None:
    (command,) = re.findall(r"```bash\n(PYTHONPATH=mine .*?)```", SECTIONS, re.DOTALL)
    path, program, *words = shlex.split(command)
    assert (path, program) == ("PYTHONPATH=mine", "python")
    words = [word for word in words if not word.startswith(("dataset.root=", "method="))]
    where = [f"dataset.root={small_root}", "results_dir=runs", "protocol.fold=0", "device=cpu"]
    python(folder, *words, *choices, *where)
    (scores,) = (folder / "runs").rglob("scores.csv")
    made = json.loads((scores.parent / "provenance.json").read_text())["command"]
    assert {"--config-dir", *choices} <= set(shlex.split(made))
    rows = list(csv.DictReader(scores.open()))
    mine = "dataset=mine" in choices
    assert {row["organ"] for row in rows} == (
        {"pancreas", "stomach"} if mine else {"liver", "RK", "LK", "spleen"}
    )
    if "matcher=histograms" not in choices:  # with random weights
        assert any(float(row["dice"]) > 0.1 for row in rows)
    if mine:
        own = ["--config-dir", "mine/conf", "method=threshold", "dataset.unscored_labels=[3,4]"]
        table = ["experiments.main_results", "runs", "--dataset", "mine", *own, "protocol.fold=0"]
        said = python(folder, "-m", *table)
        assert "threshold" in said and "earlier runs" not in said


def test_the_matcher_of_the_readme_finds_the_slice_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder / "mine")
    from histograms import Histograms

    from fsmis.pipeline.matching import match

    grey = np.random.default_rng(0).random((16, 16), np.float32)
    images = np.stack([grey**power for power in range(1, 5)])
    assert match(Histograms(bins=8), images[[2, 0]], images).tolist() == [[2], [0]]


def test_segment_takes_the_model_of_the_readme(
    folder: Path, small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder / "mine")
    (setting,) = re.findall(r'`"(hydra.searchpath=.*?)"`', SECTIONS)
    settings = [setting.replace("$PWD", str(folder)), "segmenter=nearest_mean", "device=cpu"]
    (support, mask), (query, _) = (
        [f"{small_root}/{kind}_{number}.nii.gz" for kind in ("image", "label")] for number in (1, 2)
    )
    labels = segment_volume(query, support, mask, settings=[*settings, "+test_time=none"])
    assert labels.shape == nib.load(query).shape and np.asanyarray(labels.dataobj).any()


def test_the_model_of_the_readme_keeps_the_contract(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder / "mine")
    from nearest_mean import NearestMean

    segmenter = NearestMean(side=32, batch_size=4)
    assert isinstance(segmenter, Segmenter)
    images, masks = frames(3)
    features = segmenter.encode(images)
    memory = segmenter.memorise(features, masks)
    together = segmenter.segment(features[[2, 1]], [memory[[0, 2]], memory[[1, 0]]], (50, 60))
    alone = segmenter.segment(features[[1]], [memory[[2]], memory[[0]]], (50, 60))
    assert together.logits.shape == (2, 50, 60) and together.logits.dtype == np.float32
    np.testing.assert_allclose(together.logits[1], alone.logits[0], atol=1e-6)
