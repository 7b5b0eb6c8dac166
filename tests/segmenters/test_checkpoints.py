"""Weights in the layouts in which they are published, and files that are no weights."""

import csv
import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from fsmis.cli import CONF_DIR
from fsmis.errors import UserError
from fsmis.pipeline.distances import build_lpips
from fsmis.segmenters.checkpoints import in_transformers, read_state
from fsmis.segmenters.sam2 import Sam2
from fsmis.tools.bench.ways import make_responsive

State = dict[str, Tensor]
PROMPT_EMBEDDING = "prompt_encoder.shared_embedding.positional_embedding"
POINTS = "prompt_encoder.point_embed.weight"


def build(name: str, **changes: object) -> Sam2:
    overrides = [f"segmenter={name}", "device=cpu", "cache.dir=null"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides), resolve=True)["segmenter"]
    del config["_target_"], config["cache"]
    return Sam2(**config | {"image_size": 64, **changes})


def meta_pt(state: State, folder: Path) -> Path:
    torch.save({"model": state}, folder / "sam2.pt")
    return folder / "sam2.pt"


def bare_pt(state: State, folder: Path) -> Path:
    torch.save(state, folder / "sam2.pt")
    return folder / "sam2.pt"


def renamed(state: State) -> State:
    """As ``Sam2VideoModel.state_dict()`` of transformers 4.56 and 5.24 has it: the table lists what
    the converter of that package makes of each of Meta's names for SAM2.1 tiny."""
    rows = csv.DictReader((Path(__file__).parent / "sam2_names_in_transformers.csv").open())
    out: State = {}
    for row in rows:
        if row["meta"] in state:
            tensor = state[row["meta"]]
            known = out.get(row["transformers"])  # rows of the points' embedding, ascending
            out[row["transformers"]] = tensor if known is None else torch.cat([known, tensor])
    return {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in out.items()
    }


def transformers_5(state: State, folder: Path) -> Path:
    tensors = renamed(state)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder / "model.safetensors"


def transformers_4(state: State, folder: Path) -> Path:
    tensors = renamed(state)
    del tensors[PROMPT_EMBEDDING]  # that version saves tensors that two modules share once
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder / "model.safetensors"


def logits(segmenter: Sam2) -> np.ndarray:
    image = np.random.default_rng(0).random((2, 48, 48), dtype=np.float32)
    mask = np.zeros((1, 48, 48), bool)
    mask[0, 10:30, 15:35] = True
    features = segmenter.encode(image)
    memory = segmenter.memorise(features[[0]], mask)
    answer = segmenter.segment(features[[1]], [memory, memory], (48, 48))
    points = torch.tensor([[[10.0, 20.0], [40.0, 50.0], [5.0, 5.0], [60.0, 60.0]]])
    labels = torch.tensor([[1, 0, 2, 3]], dtype=torch.int32)
    with torch.inference_mode():
        prompted, _, _ = segmenter.decode_points(features[[1]], points, labels)
    return np.concatenate([answer.logits.ravel(), prompted.numpy().ravel()])


@pytest.fixture(scope="module", params=["sam2.1_tiny", "sam2_tiny"])
def original(request) -> tuple[str, Sam2]:
    """A published size with seeded random weights, none of them zero."""
    segmenter = build(request.param, checkpoint="random", seed=5)
    make_responsive(segmenter.model, seed=5)
    return request.param, segmenter


@pytest.mark.parametrize("layout", [meta_pt, bare_pt, transformers_4, transformers_5])
def test_published_layouts_load(original, layout: Callable[[State, Path], Path], tmp_path):
    name, segmenter = original
    path = layout(segmenter.model.state_dict(), tmp_path)
    loaded = build(name, checkpoint=str(path), seed=6)
    state = loaded.model.state_dict()
    assert all(
        torch.equal(tensor, state[key]) for key, tensor in segmenter.model.state_dict().items()
    )
    np.testing.assert_array_equal(logits(segmenter), logits(loaded))


def without_a_tensor(tensors: State) -> None:
    del tensors["mask_decoder.iou_token.weight"]


def with_one_more(tensors: State) -> None:
    tensors["mask_decoder.extra.weight"] = torch.zeros(1)


def with_another_shape(tensors: State) -> None:
    tensors["memory_encoder.projection.bias"] = torch.zeros(63)


def with_three_points(tensors: State) -> None:
    tensors[POINTS] = tensors[POINTS][:3].clone()


def with_two_embeddings(tensors: State) -> None:
    tensors[PROMPT_EMBEDDING] = tensors[PROMPT_EMBEDDING] + 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without_a_tensor, "sam_mask_decoder.iou_token.weight"),
        (with_one_more, "mask_decoder.extra.weight"),
        (with_another_shape, "memory_encoder.out_proj.bias"),
        (with_three_points, "sam_prompt_encoder.point_embeddings.0.weight"),
        (with_two_embeddings, PROMPT_EMBEDDING),
    ],
)
def test_every_tensor_and_no_other(change, named, tmp_path):
    segmenter = build("sam2.1_tiny", checkpoint="random")
    tensors = renamed(segmenter.model.state_dict())
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"does not fit.* the first is {named};"):
        build("sam2.1_tiny", checkpoint=str(tmp_path / "model.safetensors"))


def test_a_file_of_transformers_of_another_version_is_refused(tmp_path):
    segmenter = build("sam2.1_tiny", checkpoint="random")
    path = transformers_5(segmenter.model.state_dict(), tmp_path)
    for other in ("sam2_tiny", "sam2_mini"):
        with pytest.raises(UserError, match="does not fit"):
            build(other, checkpoint=str(path))


def test_larger_sizes_have_more_blocks():
    name = "image_encoder.trunk.blocks.47.mlp.layers.1.weight"
    assert in_transformers(name) == "vision_encoder.backbone.blocks.47.mlp.proj_out.weight"


# files that are no checkpoints

OTHER_FILES = {
    "a text file": b"root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/usr/sbin:/bin/sh\n",
    "a program": b"#!/usr/bin/env python\nimport sys\n",
    "a number": b"7\n",
    "an image": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "a gzip": gzip.compress(b"x" * 400),
    "JSON": b'{"model": [1, 2]}',
}


def refusal(path: Path, name: str = "sam2_mini") -> str:
    with pytest.raises(UserError) as caught:
        build(name, checkpoint=str(path))
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["", ".pt", ".safetensors"])
@pytest.mark.parametrize("content", OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_files_are_named(content, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    message = refusal(path)
    assert "not a checkpoint" in message and "expected a .safetensors file" in message


def test_a_zip_of_something_else(tmp_path):
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no weights")
    assert "not a checkpoint" in refusal(path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([".pt", ".safetensors", ""]))
def test_any_bytes_are_refused_in_one_line(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("bytes") / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        read_state(path)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"model": 3}, "holds no weights"),
        ({}, "holds no weights"),
        ([1, 2], "holds a list"),
        ({"model": {"a": 1}}, "'a', a int"),
        ({"step": 7, "optimizer": {}}, "'step', a int"),
        ({3: torch.zeros(1)}, "3, a Tensor"),
    ],
)
def test_files_of_torch_that_hold_no_weights(held, told, tmp_path):
    torch.save(held, tmp_path / "weights.pt")
    assert told in refusal(tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt"):
        build_lpips("alex", str(tmp_path / "weights.pt"), 0)


def test_the_command_line_says_it_in_one_line(tmp_path, phantom_root, ask_run):
    path = tmp_path / "passwd"
    path.write_bytes(OTHER_FILES["a text file"])
    data = ["dataset=phantom", f"dataset.root={phantom_root}", f"results_dir={tmp_path}"]
    done = ask_run(f"segmenter.checkpoint={path}", *data, "device=cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
