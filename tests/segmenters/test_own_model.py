"""A video model in the user's own folder, as the README tells a new user."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fsmis.cli import CONF_DIR
from fsmis.segmenters.base import Segmenter
from tests.segmenters.engines import frames

README = (CONF_DIR.parent / "README.md").read_text()
SECTION = README[README.index("### Add a video model") :].split("\n### ")[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the README, where it says they lie."""
    for language in ("python", "yaml"):
        name, text = re.findall(rf"```{language}\n# (\S+)\n(.*?)```", SECTION, re.DOTALL)[0]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_command_of_the_readme_runs(folder, phantom_root):
    (command,) = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
    path, *words = shlex.split(command.replace("\\\n", " "))
    assert path == "PYTHONPATH=models" and words[0] == "python"
    words = [word for word in words[1:] if not word.startswith("dataset.root=")]
    data = ["dataset=phantom", f"dataset.root={phantom_root}", "results_dir=runs"]
    quick = ["device=cpu", "support_set.count=2", "wandb.mode=disabled"]
    done = subprocess.run(
        [sys.executable, *words, *data, *quick],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"models:{CONF_DIR.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (scores,) = (folder / "runs").rglob("scores.csv")
    rows = list(csv.DictReader(scores.open()))
    assert {row["organ"] for row in rows} == {"liver", "RK", "LK", "spleen"}
    assert any(float(row["dice"]) > 0.1 for row in rows)


def test_the_model_of_the_readme_keeps_the_contract(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder / "models")
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
