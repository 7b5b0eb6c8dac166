"""The README's example of a new method runs as it stands there."""

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fsmis.data.dataset import Dataset
from fsmis.data.protocol import Protocol

README = (Path(__file__).parents[1] / "README.md").read_text()
CONF = Path(__file__).parents[1] / "conf"


def code_block(language: str, first_line: str) -> str:
    match = re.search(rf"```{language}\n# {re.escape(first_line)}\n(.*?)```", README, re.DOTALL)
    assert match, first_line
    return match[1]


def test_the_method_of_the_readme_runs(phantom_root, tmp_path, monkeypatch):
    (tmp_path / "threshold.py").write_text(code_block("python", "fsmis/methods/threshold.py"))
    monkeypatch.syspath_prepend(tmp_path)
    yaml = code_block("yaml", "conf/method/threshold.yaml")
    method = instantiate(OmegaConf.create(yaml.replace("fsmis.methods.threshold", "threshold")))

    config = OmegaConf.load(CONF / "dataset" / "phantom.yaml")
    dataset: Dataset = instantiate(config, root=phantom_root)
    protocol: Protocol = instantiate(OmegaConf.load(CONF / "protocol" / "alpnet.yaml"))
    split = protocol.splits(dataset)[0]
    support, query = dataset.load(split.support_id), dataset.load(split.query_ids[0])
    episode = protocol.episode(dataset, split, support, query)
    masks = method.segment(episode)
    assert set(masks) == set(episode.organs)
    for organ, mask in masks.items():
        assert mask.dtype == np.bool_
        assert mask.shape == (len(episode.organs[organ].query_slices), *query.image.shape[1:])


def test_the_dataset_of_the_readme_loads(phantom_root):
    mine = OmegaConf.create(code_block("yaml", "conf/dataset/mine.yaml"))
    assert mine.pop("defaults") == ["own"]
    config = OmegaConf.merge(OmegaConf.load(CONF / "dataset" / "own.yaml"), mine)
    dataset: Dataset = instantiate(config, root=phantom_root, fold_starts=2, unscored_labels=[3, 4])
    scan = dataset.load("1")
    assert dataset.organs == {"pancreas": 1, "stomach": 2} and scan.label is not None


def test_files_and_folders_that_the_readme_names_exist():
    root = CONF.parent
    for name in re.findall(r"`((?:fsmis|data_prep|conf)/[\w/.]*)`", README):
        if "threshold" not in name:
            assert (root / name).exists(), name
    for name in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (root / name).exists(), name


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
