"""What the README names exists, and its five lines of Python run."""

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()
CONF = Path(__file__).parents[1] / "conf"


def test_files_and_folders_that_the_readme_names_exist():
    root = CONF.parent
    for name in re.findall(r"`((?:fsmis|data_prep|conf)/[\w/.]*)`", README):
        assert (root / name).exists(), name
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for name in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert name[1:] in anchors if name.startswith("#") else (root / name).exists(), name


def test_the_five_lines_of_the_readme_run(tmp_path, phantom_root, monkeypatch):
    match = re.search(r"```python\n(from fsmis import VolumeSegmenter\n.*?)```", README, re.DOTALL)
    assert match
    for name, scan in (("s", "image_1"), ("m", "label_1"), ("q1", "image_2"), ("q2", "image_3")):
        shutil.copy(phantom_root / f"{scan}.nii.gz", tmp_path / f"{name}.nii.gz")
    monkeypatch.chdir(tmp_path)
    exec(match[1].replace("device=cpu", "method=copy_mask"), {})
    for name in ("q1", "q2"):
        query, labels = (nib.load(f"{start}{name}.nii.gz") for start in ("", "labels_"))
        assert labels.shape == query.shape and np.asanyarray(labels.dataobj).any()
