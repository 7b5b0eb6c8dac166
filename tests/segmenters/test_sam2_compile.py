"""``segmenter.compile``: the same logits from a compiled encoder, or one line before any scan."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fsmis.segmenters.cache import FeatureCache
from fsmis.segmenters.sam2 import Sam2
from fsmis.tools.bench.ways import make_responsive
from tests.segmenters.test_sam2 import TOLERANCE, build

SMALL = {  # what takes least time to compile: a block for each of three levels
    "checkpoint": "random",
    "image_size": 64,
    "overrides": {
        "image_encoder.scalp": 0,
        "image_encoder.trunk.stages": [1, 1, 1],
        "image_encoder.trunk.q_pool": 2,
        "image_encoder.trunk.window_spec": [8, 4, 4],
        "image_encoder.trunk.global_att_blocks": [],
        "image_encoder.neck.backbone_channel_list": [128, 64, 32],
        "image_encoder.neck.fpn_top_down_levels": [2],
    },
}
IMAGES = np.random.default_rng(0).random((5, 40, 48), dtype=np.float32)


def small(**changes: object) -> Sam2:
    segmenter = build("sam2_mini", **SMALL, **changes)
    make_responsive(segmenter.model, seed=1)
    return segmenter


@pytest.fixture(scope="module")
def eager() -> Sam2:
    return small()


@pytest.fixture(scope="module")
def compiled() -> Sam2:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler")
    return small(compile=True)


def logits(segmenter: Sam2) -> np.ndarray:
    """Of four images prompted by a square on the fifth."""
    features = segmenter.encode(IMAGES)
    mask = np.zeros((4, 40, 48), bool)
    mask[:, 10:30, 10:30] = True
    memory = segmenter.memorise(features[[4] * 4], mask)
    return segmenter.segment(features[:4], [memory], (40, 48)).gated


def test_logits_are_those_of_the_eager_encoder(eager, compiled):
    assert compiled.images_encoded == 0
    with torch.compiler.set_stance("fail_on_recompile"):
        found = logits(compiled)
    expected = logits(eager)
    assert np.abs(found - expected).max() < TOLERANCE
    assert expected.std() > 100 * TOLERANCE
    assert compiled.images_encoded == len(IMAGES)


def test_weights_keep_their_names_and_features_get_other_keys(eager, compiled, tmp_path):
    theirs = compiled.model.state_dict()
    assert list(theirs) == list(eager.model.state_dict())
    compiled.cache = eager.cache = FeatureCache(tmp_path, 10**9)
    try:
        counts = []
        for segmenter in (compiled, eager, compiled, eager):
            before = segmenter.images_encoded
            segmenter.encode(IMAGES[:2])
            counts.append(segmenter.images_encoded - before)
    finally:
        compiled.cache = eager.cache = None
    assert counts == [2, 2, 0, 0]


def test_every_pass_has_the_size_that_was_compiled(eager, monkeypatch):
    expected = eager.encode(IMAGES)
    sizes, features = [], eager.features
    monkeypatch.setattr(eager, "features", lambda p: sizes.append(len(p)) or features(p))
    monkeypatch.setattr(eager, "encode_batch_size", 2)
    monkeypatch.setattr(eager, "compiled", True)
    found = eager.encode(IMAGES)
    assert sizes == [2, 2, 2] and len(found) == 5
    for ours, theirs in zip(found.levels, expected.levels, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_machine_that_cannot_compile_says_so_before_the_first_scan(phantom_root, tmp_path):
    command = [
        *(sys.executable, "-m", "fsmis.run", "dataset=phantom", f"dataset.root={phantom_root}"),
        *("segmenter.compile=true", "segmenter.image_size=64", "device=cpu", "method=sam2_single"),
        f"results_dir={tmp_path / 'runs'}",
    ]
    environment = {
        **os.environ,
        "CXX": str(tmp_path / "no-compiler"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels"),
    }
    repository = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "no-compiler" in done.stderr
    assert "error: segmenter.compile=true: torch.compile fails on cpu" in done.stderr
    assert "set segmenter.compile=false" in done.stderr
    assert not list((tmp_path / "runs").rglob("*.json"))
