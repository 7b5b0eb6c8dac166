"""Engines over transformers: against the ``sam2`` package, and against their own sessions."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file

from fsmis.cli import CONF_DIR
from fsmis.errors import UserError
from fsmis.segmenters.checkpoints import to_meta, to_transformers
from fsmis.segmenters.features import Memory
from fsmis.segmenters.sam2 import Sam2, read_architecture
from fsmis.segmenters.transformers_loading import import_transformers, sized
from fsmis.segmenters.transformers_models import TransformersModel
from fsmis.tools.export import config_of, export, main
from tests.segmenters.engines import ENGINES, build, configured, enliven, frames, shared

TOLERANCE = 2e-4  # of features and logits of a few units
SIZE = (100, 90)
IMAGES, MASKS = frames(4, SIZE)
TRANSFORMERS = [name for name in ENGINES if "model" in configured(name)]


def opened(folder: Path, like: Sam2, **changes: Any) -> TransformersModel:
    """An exported folder as an engine that sees the pixels that another one does."""
    same = {
        "image_size": like.image_size,
        "mean": like.mean.flatten().tolist(),
        "std": like.std.flatten().tolist(),
        "device": "cpu",
    }
    return TransformersModel("Sam2Video", str(folder), **same | changes)


def given(memory: Memory) -> Memory:
    """A memory of the ``sam2`` engine, its cells in a row as transformers has them."""
    features, position = (
        maps.flatten(2).transpose(1, 2) for maps in (memory.features, memory.position)
    )
    return Memory(features, memory.pointer, position)


@pytest.fixture(scope="module", params=["sam2.1_tiny", "sam2_tiny", "sam2_mini"])
def pair(request, tmp_path_factory) -> tuple[Sam2, TransformersModel]:
    """The ``sam2`` engine, and transformers with the same weights from a folder."""
    meta = build(request.param, image_size=96)
    folder = tmp_path_factory.mktemp(request.param)
    export(meta, folder)
    return meta, opened(folder, meta)


def test_features_equal_those_of_the_sam2_package(pair):
    meta, other = pair
    ours, theirs = meta.encode(IMAGES), other.encode(IMAGES)
    assert (ours.position - theirs.position).abs().max() < TOLERANCE
    for one, two in zip(ours.levels, theirs.levels, strict=True):
        assert one.shape == two.shape
        assert (one - two).abs().max() < TOLERANCE
        assert (one[0] - one[1]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_given_memory_decodes_as_in_the_sam2_package(pair, count):
    meta, other = pair
    features, queries = meta.encode(IMAGES), other.encode(IMAGES)
    memory = meta.memorise(features, MASKS)
    turns = [np.roll(np.arange(4), turn) for turn in range(1, count + 1)]
    one = meta.segment(features, [memory[turn] for turn in turns], SIZE)
    two = other.segment(queries, [given(memory[turn]) for turn in turns], SIZE)
    for name in ("logits", "object_score", "iou"):
        assert np.abs(getattr(one, name) - getattr(two, name)).max() < TOLERANCE
    assert one.present.all() and (one.logits > 0).any() and (one.logits < 0).any()
    assert np.abs(one.logits[0] - one.logits[1]).max() > 100 * TOLERANCE
    # by design, memories of its own differ: see the module
    own = other.segment(queries, [other.memorise(queries, MASKS)[turn] for turn in turns], SIZE)
    assert np.abs(one.logits - own.logits).max() > TOLERANCE


def test_points_decode_as_in_the_sam2_package(pair):
    points = torch.tensor([[[10.0, 20.0], [40.0, 50.0], [5.0, 5.0], [60.0, 60.0]]])
    labels = torch.tensor([[1, 0, 2, 3]], dtype=torch.int32)
    one, two = (engine.decode_points(engine.encode(IMAGES[:1]), points, labels) for engine in pair)
    for ours, theirs in zip(one, two, strict=True):
        assert (ours - theirs).abs().max() < TOLERANCE


def through_a_session(segmenter: TransformersModel, length: int) -> tuple[np.ndarray, list[dict]]:
    """The public session: a video whose first frame has two objects as mask prompts.

    Returns:
        low-resolution logits ``[length - 1, K, h, w]``, and what it keeps of the first frame, K.
    """
    module = type(segmenter.model).__module__
    kind = type(segmenter.model).__name__.removesuffix("Model")
    session = getattr(sys.modules[module], f"{kind}InferenceSession")(
        video=segmenter.pixels(IMAGES[:length]),
        video_height=SIZE[0],
        video_width=SIZE[1],
        dtype=torch.float32,
    )
    side = segmenter.image_size
    processor = transformers.Sam2VideoProcessor(
        transformers.Sam2ImageProcessor(),
        transformers.Sam2VideoVideoProcessor(),
        target_size=side,
    )
    processor.add_inputs_to_inference_session(
        session, frame_idx=0, obj_ids=[1, 2], input_masks=[MASKS[0], MASKS[1]]
    )
    segmenter.model(session, frame_idx=0)
    video = segmenter.model.propagate_in_video_iterator(session)
    masks = np.stack([frame.pred_masks[:, 0].numpy() for frame in video][1:])
    return masks, [session.output_dict_per_obj[k]["cond_frame_outputs"][0] for k in range(2)]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_three_calls_are_a_session_of_two_frames(name):
    segmenter = shared(name)
    features = segmenter.encode(IMAGES)
    memory = segmenter.memorise(features[[0, 0]], MASKS[:2])
    (theirs,), kept = through_a_session(segmenter, 2)
    for one, two in zip((memory[[0]], memory[[1]]), kept, strict=True):
        assert (one.pointer - two["object_pointer"][0]).abs().max() < 1e-5
        cells = two["maskmem_features"].reshape(one.features.shape)
        assert (one.features - cells).abs().max() < 0.01  # a step of bfloat16
    assert (memory.pointer[0] - memory.pointer[1]).abs().max() > 1e-4
    ours = segmenter.segment(features[[1, 1]], [memory], theirs.shape[1:])
    assert np.abs(ours.gated - theirs).max() < TOLERANCE
    assert ours.present.all() and np.abs(theirs[0] - theirs[1]).max() > 10 * TOLERANCE


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_track_is_a_session_of_more_frames(name):
    segmenter = shared(name)
    features = segmenter.encode(IMAGES)
    support = segmenter.memorise(features[[0, 0]], MASKS[:2])
    theirs, _ = through_a_session(segmenter, 4)
    past: list[Memory] = []
    for frame in (1, 2, 3):
        size = theirs.shape[2:]
        found, memory = segmenter.track(features[[frame] * 2], [support], past, 4, size)
        past.append(memory)
        assert np.abs(found.gated - theirs[frame - 1]).max() < TOLERANCE


# checkpoints


def test_the_embedded_checkpoint_opens_in_transformers(tmp_path):
    main([str(tmp_path / "mini")])
    model = transformers.Sam2VideoModel.from_pretrained(tmp_path / "mini")
    weights = load_file(CONF_DIR.parent / "fsmis/segmenters/mini/sam2_mini.safetensors")
    back = to_meta(model.state_dict(), weights)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    processor = transformers.Sam2VideoProcessor.from_pretrained(tmp_path / "mini")
    assert processor.video_processor.size["height"] == processor.target_size == 320
    meta = instantiate(configured("sam2_mini") | {"checkpoint": "sam2_mini.safetensors"})
    other = opened(tmp_path / "mini", meta)
    features, queries = meta.encode(IMAGES), other.encode(IMAGES)
    memory = meta.memorise(features[[0]], MASKS[:1])
    one = meta.segment(features[[1]], [memory], SIZE)
    two = other.segment(queries[[1]], [given(memory)], SIZE)
    assert np.abs(one.logits - two.logits).max() < TOLERANCE < np.ptp(one.logits)
    own = other.segment(queries[[1]], [other.memorise(queries[[0]], MASKS[:1])], SIZE)
    assert (own.masks != one.masks).mean() < 0.05  # by design not equal, see the module


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_sizes_of_transformers_are_those_of_the_sam2_package(size):
    short = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}[size]
    architecture = read_architecture(f"configs/sam2.1/sam2.1_hiera_{short}.yaml", {})
    random = configured(f"transformers_sam2.1_{size}")["architecture"]
    one, two = (
        sized(transformers.Sam2VideoConfig(**settings), 1024)
        for settings in (config_of(architecture, 1024), random)
    )
    assert one.vision_config.to_dict() == two.vision_config.to_dict()
    if size == "base_plus":  # the size that the package describes by defaults
        with torch.device("meta"):
            model = transformers.Sam2VideoModel(one)
        meta = to_transformers(instantiate(architecture).state_dict())
        shapes = {name: tensor.shape for name, tensor in meta.items()}
        assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


def test_a_checkpoint_is_read_at_any_size_and_wholly(tmp_path):
    meta = build("sam2_mini")
    export(meta, tmp_path)
    larger = opened(tmp_path, meta, image_size=128)
    assert larger.encode(IMAGES).levels[-1].shape == (4, 128, 8, 8)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors differ.*mask_decoder\.iou_token\.weight"):
        opened(tmp_path, meta)


def test_the_tracker_is_found_beside_the_detector(tmp_path):
    """The layout of facebook/sam3: one folder with a detector, whose encoder the tracker shares."""
    config = transformers.Sam3VideoConfig()
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "global_attn_indexes": [1], "image_size": 112}
    for vision in (config.detector_config.vision_config, config.tracker_config.vision_config):
        vision.backbone_config.update(small)
    config.tracker_config.image_size = 112
    tracker = transformers.Sam3TrackerVideoModel(config.tracker_config).eval()
    enliven(tracker)
    state = {}
    for name, tensor in tracker.state_dict().items():
        name = name.replace("vision_encoder.backbone.", "detector_model.vision_encoder.backbone.")
        name = name.replace("vision_encoder.neck.", "tracker_neck.")
        shared_name = name.startswith(("detector_model.", "tracker_neck."))
        state[name if shared_name else f"tracker_model.{name}"] = tensor.contiguous()
    state["detector_model.other.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    config.save_pretrained(tmp_path)
    segmenter = instantiate(
        configured("sam3_tracker") | {"checkpoint": str(tmp_path), "image_size": 112}
    )
    loaded = segmenter.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tracker.state_dict().items())


# refusals


def test_refusals_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = configured("transformers_sam2.1_tiny")
    for change, message in (
        ({"model": "Sam2"}, "segmenter.model=Sam2: choose one of Sam2Video"),
        ({"image_size": 100}, "not a multiple of 32"),
        ({"image_size": 320, "model": "EdgeTamVideo"}, "not a multiple of 256"),
        ({"checkpoint": str(tmp_path)}, f"segmenter.checkpoint={tmp_path} cannot be read"),
        ({"checkpoint": "facebook/sam2.1-hiera-tiny"}, "hiera-tiny cannot be read"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            TransformersModel(**{k: v for k, v in (settings | change).items() if k != "_target_"})
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm is not installed: pip install .*transformers"):
        import_transformers()


def test_a_missing_package_is_one_line_with_the_command(
    tmp_path, phantom_root, monkeypatch, ask_run
):
    monkeypatch.setitem(sys.modules, "transformers", None)
    data = ["dataset=phantom", f"dataset.root={phantom_root}", "protocol.fold=0"]
    chosen = ["segmenter=edgetam", "segmenter.checkpoint=random"]
    done = ask_run(*chosen, *data, f"results_dir={tmp_path}", "wandb.mode=disabled")
    assert done.returncode == 2
    assert done.stderr == (
        "error: the package transformers is not installed: pip install -c constraints.txt -e "
        '".[transformers]"\n'
    )


def test_export_refuses_what_is_not_of_the_sam2_engine(tmp_path, capsys):
    overrides = ["segmenter=edgetam", "segmenter.checkpoint=random", "segmenter.image_size=256"]
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "out"), *overrides])
    assert "choose a segmenter of the sam2 engine" in capsys.readouterr().err
