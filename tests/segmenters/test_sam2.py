"""Stage 3 against the public predictor, on the same pixels and seeded weights."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from fsmis.errors import UserError
from fsmis.pipeline.prompting import Prompts, segment_prompted
from fsmis.segmenters.checkpoints import find_checkpoint
from fsmis.segmenters.features import Features
from fsmis.segmenters.sam2 import Sam2, build_sam2
from fsmis.tools.bench.ways import make_responsive

CONF = Path(__file__).parents[2] / "conf"
SIZE = 256
TOLERANCE = 2e-4  # of logits; catches every known way to get the step wrong


def segmenter_config(name: str, **changes: object):
    """A segmenter's configuration as it is composed, with changes."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"segmenter={name}", "device=cpu", "cache.dir=null"])
    return OmegaConf.merge(OmegaConf.to_container(config, resolve=True)["segmenter"], changes)


def build(name: str, **changes: object) -> Sam2:
    """The segmenter of a YAML, with changes."""
    config = OmegaConf.to_container(segmenter_config(name, **changes), resolve=True)
    assert config.pop("_target_") == "fsmis.segmenters.sam2.Sam2" and config.pop("cache")
    return Sam2(**config)


@pytest.fixture(scope="module")
def frames() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two support and three query images [., 200, 180] in [0, 1], and four masks."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:200, :180]
    images = []
    for _ in range(5):
        waves = sum(
            np.sin(x / rng.uniform(5, 30) + y / rng.uniform(5, 30) + rng.uniform(0, 6))
            for _ in range(6)
        )
        images.append((waves - waves.min()) / np.ptp(waves))
    stack = (np.stack(images) * 255).round() / 255
    masks = np.stack(
        [
            (x - cx) ** 2 + (y - cy) ** 2 < r**2
            for cx, cy, r in ((50, 60, 30), (120, 60, 18), (60, 140, 40), (130, 150, 8))
        ]
    )
    return stack[:2].astype(np.float32), stack[2:].astype(np.float32), masks


def public_logits(predictor, folder: Path, support, query, masks) -> np.ndarray:
    """Logits [organs, H, W] of one query slice through the public API, frames stored lossless."""
    for index, image in enumerate((support, query)):
        pixels = (image * 255).round().astype(np.uint8)
        with (folder / f"{index:05d}.jpg").open("wb") as file:
            Image.fromarray(pixels).save(file, format="PNG")
    state = predictor.init_state(str(folder))
    for organ, mask in enumerate(masks):
        predictor.add_new_mask(state, frame_idx=0, obj_id=organ, mask=mask)
    results = list(predictor.propagate_in_video(state))
    return results[1][2][:, 0].numpy()


@pytest.mark.filterwarnings("ignore")  # the package warns that its CUDA kernel is not compiled
@pytest.mark.parametrize("name", ["sam2_tiny", "sam2.1_tiny", "sam2_mini"])
def test_logits_equal_the_public_predictor(name, frames, tmp_path):
    supports, queries, masks = frames
    segmenter = build(name, checkpoint="random", image_size=SIZE)
    make_responsive(segmenter.model, seed=1)
    public = build_sam2(
        segmenter_config(name).architecture,
        {
            "image_size": SIZE,
            "_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor",
            "fill_hole_area": 8,
            **segmenter_config(name).overrides,
        },
    )
    public.load_state_dict(segmenter.model.state_dict())
    if name == "sam2_mini":  # whose own normalisation the public loader does not know
        segmenter.mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        segmenter.std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

    # Rows: every query with every organ; query 1 is prompted by support 1, the others by support 0.
    matched = np.array([0, 1, 0])
    organs = len(masks)
    prompts = Prompts(
        memory_copy=np.repeat([0, 1], organs),
        memory_mask=np.concatenate([masks, masks]),
        row_query=np.repeat(np.arange(3), organs),
        row_memory=(matched[:, None] * organs + np.arange(organs)).reshape(-1, 1),
    )
    ours = segment_prompted(
        segmenter, segmenter.encode(queries), segmenter.encode(supports), prompts
    )
    ours = ours.gated.reshape(3, organs, *masks.shape[1:])
    theirs = np.stack(
        [public_logits(public, tmp_path, supports[matched[q]], queries[q], masks) for q in range(3)]
    )
    assert segmenter.images_encoded == 5
    assert np.abs(ours - theirs).max() < TOLERANCE
    assert ((ours > 0) != (theirs > 0)).mean() <= 1e-5
    # Not vacuous: masks, slices and supports all matter, by far more than the tolerance.
    assert np.abs(ours[:, 0] - ours[:, 1]).max() > 100 * TOLERANCE
    assert np.abs(ours[0] - ours[2]).max() > 100 * TOLERANCE
    assert ours.min() > -1000
    assert (ours > 0).any() and (ours < 0).any()


def test_a_mask_of_one_pixel_still_prompts():
    segmenter = build("sam2_mini", checkpoint="random", image_size=64)
    make_responsive(segmenter.model, seed=1)
    features = segmenter.encode(np.random.default_rng(0).random((1, 256, 256), dtype=np.float32))
    dot, other, none = np.zeros((3, 1, 256, 256), bool)
    dot[0, 30, 40] = other[0, 200, 200] = True
    memory, elsewhere, empty = (segmenter.memorise(features, mask) for mask in (dot, other, none))
    assert not torch.allclose(memory.pointer, empty.pointer)
    assert not torch.allclose(memory.pointer, elsewhere.pointer)


def test_batching_does_not_change_logits(frames):
    supports, queries, masks = frames
    segmenter = build("sam2_mini", checkpoint="random", image_size=64)
    make_responsive(segmenter.model, seed=2)
    prompts = Prompts(
        np.zeros(4, int), masks, np.array([0, 1, 2, 0]), np.array([[0], [1], [2], [3]])
    )
    encoded = segmenter.encode(queries), segmenter.encode(supports)
    together = segment_prompted(segmenter, *encoded, prompts).gated
    segmenter.batch_size = segmenter.encode_batch_size = 1
    encoded = segmenter.encode(queries), segmenter.encode(supports)
    alone = segment_prompted(segmenter, *encoded, prompts).gated
    assert np.abs(together - alone).max() < 1e-4


def test_the_first_self_attention_passes_each_slice_once(frames):
    """Whatever the order of rows, in as many batches as there are, all with the same logits."""
    supports, queries, masks = frames
    segmenter = build("sam2_mini", checkpoint="random", image_size=64)
    make_responsive(segmenter.model, seed=2)
    organs, slices = len(masks), len(queries)
    prompts = Prompts(
        memory_copy=np.zeros(organs, int),
        memory_mask=masks,
        row_query=np.tile(np.arange(slices), organs),
        row_memory=np.arange(organs).repeat(slices)[:, None],
    )
    passed: dict[str, list[int]] = {"first": [], "second": []}
    for name, layer in zip(passed, segmenter.model.memory_attention.layers, strict=False):
        count = passed[name].append
        layer.self_attn.q_proj.register_forward_pre_hook(lambda _, args, c=count: c(len(args[0])))
    encoded = segmenter.encode(queries), segmenter.encode(supports)
    shared = segment_prompted(segmenter, *encoded, prompts)
    assert passed == {"first": [slices], "second": [slices * organs]}
    segmenter.batch_size = 2 * organs
    assert (
        np.abs(segment_prompted(segmenter, *encoded, prompts).logits - shared.logits).max() < 2e-5
    )
    assert passed["first"] == [slices, 2, slices - 2]
    apart = Features.cat([encoded[0][[row]] for row in prompts.row_query])
    alone = replace(prompts, row_query=np.arange(len(prompts.row_query)))
    separate = segment_prompted(segmenter, apart, encoded[1], alone)
    assert sum(passed["first"][3:]) == slices * organs
    assert np.abs(separate.logits - shared.logits).max() < 2e-5
    assert shared.logits.std(axis=0).mean() > 1e-2  # slices and organs do differ


def test_features_index_and_join():
    levels = [torch.arange(3.0).view(3, 1, 1, 1)] * 3
    features = Features(levels, torch.zeros(1))
    joined = Features.cat([features[[2]], features[:1]])
    assert joined.levels[-1].flatten().tolist() == [2, 0] and len(joined) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "HTML page"),
        (b"", "0 bytes"),
        (b"\x80\x04\x95cos\nsystem\n.", "not a checkpoint"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_checkpoints_are_named(content, message, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        build("sam2_mini", checkpoint=str(path))
    assert str(path) in str(error.value)


def test_checkpoint_of_another_architecture_is_refused(tmp_path):
    small = build("sam2_mini", checkpoint="random")
    torch.save({"model": small.model.state_dict()}, tmp_path / "mini.pt")
    build("sam2_mini", checkpoint=str(tmp_path / "mini.pt"))
    with pytest.raises(UserError, match="does not fit"):
        build("sam2.1_tiny", checkpoint=str(tmp_path / "mini.pt"))
    with pytest.raises(UserError, match="SHA-256"):
        build("sam2_mini", checkpoint=str(tmp_path / "mini.pt"), sha256="0" * 64)


def test_pickled_code_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        build("sam2_mini", checkpoint=str(tmp_path / "evil.pt"))
    assert not (tmp_path / "ran").exists()


def test_missing_weights_say_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="neither a file nor a known hub id"):
        build("sam2_mini", checkpoint="nowhere.pt")


def test_hub_weights_offline_fail_at_once(tmp_path):
    checkpoint = segmenter_config("sam2.1_tiny").checkpoint
    code = (
        f"from fsmis.segmenters.checkpoints import find_checkpoint; find_checkpoint('{checkpoint}')"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CONF.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "segmenter.checkpoint=/path/to/sam2.1_hiera_tiny.pt" in done.stderr


@pytest.mark.parametrize(
    "name",
    sorted(
        path.stem
        for path in (CONF / "segmenter").glob("*.yaml")
        if "architecture: configs/" in path.read_text() or path.stem == "sam2_mini"
    ),
)
def test_every_size_builds(name):
    segmenter = build(name, checkpoint="random", image_size=64)
    image = np.zeros((1, 32, 32), np.float32)
    image[:, 8:24, 8:24] = 1
    features = segmenter.encode(image)
    memory = segmenter.memorise(features, image > 0)
    assert segmenter.segment(features, [memory, memory], (32, 32)).logits.shape == (1, 32, 32)


def test_medsam2_is_sam2_tiny_at_512_pixels(tmp_path, frames):
    """As its own sam2.1_hiera_t512 has it, and from a file in the layout of its own."""
    rope = {
        f"memory_attention.layer.{part}_attention.feat_sizes": [32, 32]
        for part in ("self", "cross")
    }
    settings = OmegaConf.to_container(segmenter_config("medsam2").overrides)
    theirs = build("sam2.1_tiny", checkpoint="random", image_size=512, overrides=settings | rope)
    make_responsive(theirs.model, seed=1)
    torch.save({"model": theirs.model.state_dict()}, tmp_path / "MedSAM2_latest.pt")
    ours = build("medsam2", checkpoint=str(tmp_path / "MedSAM2_latest.pt"), seed=1)
    supports, _, masks = frames
    answers = []
    for segmenter in (theirs, ours):
        features = segmenter.encode(supports[:1])
        memory = segmenter.memorise(features, masks[:1])
        answers.append(segmenter.segment(features, [memory], masks.shape[1:]))
    np.testing.assert_array_equal(answers[0].logits, answers[1].logits)
    assert np.ptp(answers[0].logits) > 100 * TOLERANCE and answers[0].present.all()


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("wanglab/MedSAM2", "MedSAM2_latest.pt"),
        ("wanglab/MedSAM2/MedSAM2_CTLesion.pt", "MedSAM2_CTLesion.pt"),
    ],
)
def test_files_of_medsam2_are_asked_for_by_name(checkpoint, name, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda *repository_and_file: asked.append(repository_and_file) or str(tmp_path / name),
    )
    assert find_checkpoint(checkpoint) == tmp_path / name
    assert asked == [("wanglab/MedSAM2", name)]


@pytest.mark.parametrize("order", ["sam2 first", "hydra first"])
def test_sam2_and_hydra_live_together(order):
    config = segmenter_config("sam2_mini", checkpoint="random", image_size=64)
    GlobalHydra.instance().clear()

    def use_sam2():
        instantiate(config)

    if order == "sam2 first":
        use_sam2()
        assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        use_sam2()
        assert compose("config", overrides=["method=copy_mask"]).method._target_


def test_bad_settings_are_named():
    with pytest.raises(UserError, match="multiple of 32"):
        build("sam2_mini", checkpoint="random", image_size=100)
    for batch in ("batch_size", "encode_batch_size"):
        with pytest.raises(UserError, match=f"{batch}=0"):
            build("sam2_mini", checkpoint="random", **{batch: 0})
    with pytest.raises(UserError, match="device=cuda:7"):
        build("sam2_mini", checkpoint="random", device="cuda:7")
    with pytest.raises(UserError, match="architecture=nothing"):
        build("sam2_mini", architecture="nothing.yaml")
