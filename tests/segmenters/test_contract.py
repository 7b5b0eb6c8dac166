"""What every engine owes the pipeline, see ``fsmis.segmenters``."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from fsmis.cli import CONF_DIR
from fsmis.segmenters import Answer, Segmenter, Tracker
from fsmis.segmenters.features import Features, Memory
from fsmis.segmenters.network import AttentionInPortions, attention_in_portions
from tests.segmenters.engines import ENGINES, build, configured, frames, shared

SIZE = (100, 90)
ROUNDING = 1e-4  # of logits of a few units: what the company of a batch may change
IMAGES, MASKS = frames(4, SIZE)
every_engine = pytest.mark.parametrize("name", ENGINES)


def answer(segmenter: Segmenter, rows: list[int], prompts: list[int], masks=MASKS) -> Answer:
    """Rows of the images, each prompted by another row and its mask."""
    features = segmenter.encode(IMAGES)
    memory = segmenter.memorise(features[prompts], masks[prompts])
    return segmenter.segment(features[rows], [memory], SIZE)


def apart(one: Answer, other: Answer) -> float:
    return max(
        np.abs(getattr(one, name) - getattr(other, name)).max()
        for name in ("logits", "object_score", "iou")
    )


def test_every_file_of_the_group_is_an_engine_under_test():
    """Sizes beside the listed ones are of the same classes, which their settings fit."""
    tested = {(configured(name)["_target_"], configured(name).get("model")) for name in ENGINES}
    assert len(ENGINES) >= 5
    for path in (CONF_DIR / "segmenter").glob("*.yaml"):
        if "???" not in str(OmegaConf.to_container(OmegaConf.load(path))):
            settings = configured(path.stem)
            assert (settings["_target_"], settings.get("model")) in tested, path.name


@every_engine
def test_it_is_a_segmenter_and_a_tracker(name):
    segmenter = shared(name)
    assert isinstance(segmenter, Segmenter) and isinstance(segmenter, Tracker)
    assert segmenter.batch_size >= 1


@every_engine
def test_features_are_maps_from_fine_to_coarse(name):
    features = shared(name).encode(IMAGES)
    assert len(features) == len(IMAGES) and len(features[[2, 0]]) == 2
    sides = [level.shape[-1] for level in features.levels]
    assert sides == sorted(sides, reverse=True)
    for level in features.levels:
        assert level.ndim == 4 and len(level) == len(IMAGES) and level.isfinite().all()
        assert not torch.allclose(level[0], level[1], atol=0.01)  # images matter


@every_engine
def test_answers_have_their_shapes_and_ranges(name):
    segmenter = shared(name)
    features = segmenter.encode(IMAGES)
    memory = segmenter.memorise(features, MASKS)
    assert len(memory) == len(IMAGES)
    found = segmenter.segment(features[[3, 2]], [memory[[0, 1]], memory[[1, 2]]], (50, 70))
    assert found.logits.shape == (2, 50, 70)
    assert found.object_score.shape == found.iou.shape == (2,)
    for values in (found.logits, found.object_score, found.iou):
        assert values.dtype == np.float32 and np.isfinite(values).all()
    assert (found.iou >= 0).all() and (found.iou <= 1).all()
    assert found.present.all()  # else a mask is nowhere, and no test below can fail
    assert (found.logits > 0).any() and (found.logits < 0).any()


@every_engine
def test_rows_are_independent(name):
    segmenter = shared(name)
    together = answer(segmenter, [3, 2, 1], [0, 1, 2])
    for row, (image, prompt) in enumerate([(3, 0), (2, 1), (1, 2)]):
        assert apart(together[[row]], answer(segmenter, [image], [prompt])) < ROUNDING
    assert apart(together, answer(segmenter, [3, 2, 1], [0, 1, 2])) == 0  # nor on earlier calls


@every_engine
def test_joined_is_as_together(name):
    segmenter = shared(name)
    halves = [segmenter.encode(IMAGES[:1]), segmenter.encode(IMAGES[1:])]
    features = Features.cat(halves)
    memory = Memory.cat([segmenter.memorise(features[[row]], MASKS[[row]]) for row in range(2)])
    joined = segmenter.segment(features[[3, 2]], [memory], SIZE)
    assert apart(joined, answer(segmenter, [3, 2], [0, 1])) < ROUNDING


@every_engine
def test_image_mask_and_every_memory_matter(name):
    segmenter = shared(name)
    base = answer(segmenter, [3], [0])
    other_mask = MASKS[[1, 0, 2, 3]]
    assert apart(base, answer(segmenter, [2], [0])) > 10 * ROUNDING
    assert apart(base, answer(segmenter, [3], [0], other_mask)) > 10 * ROUNDING
    features = segmenter.encode(IMAGES)
    memory = segmenter.memorise(features, MASKS)
    two = segmenter.segment(features[[3]], [memory[[0]], memory[[1]]], SIZE)
    assert apart(base, two) > 10 * ROUNDING
    swapped = segmenter.segment(features[[3]], [memory[[1]], memory[[0]]], SIZE)
    assert apart(two, swapped) > 0  # the nearest last


@every_engine
def test_many_memories_are_taken(name):
    segmenter = shared(name)
    features = segmenter.encode(IMAGES)
    memory = segmenter.memorise(features, MASKS)
    many = [memory[[row % 4]] for row in range(7)]
    assert np.isfinite(segmenter.segment(features[[3]], many, SIZE).logits).all()


@every_engine
def test_a_pixel_prompts_and_an_empty_mask_says_no_object(name):
    segmenter = shared(name)
    features = segmenter.encode(IMAGES[:1])
    dot, other, empty = np.zeros((3, 1, *SIZE), bool)
    dot[0, 30, 40] = other[0, 80, 80] = True
    pixel, elsewhere, none = (segmenter.memorise(features, mask) for mask in (dot, other, empty))
    for one, two in ((pixel, none), (pixel, elsewhere)):
        assert not torch.allclose(one.pointer, two.pointer, atol=1e-6)


@every_engine
def test_predictions_are_memorised_as_labels_are(name):
    segmenter = shared(name)
    features = segmenter.encode(IMAGES[:2])
    labels = segmenter.memorise(features, MASKS[:2])
    predictions = segmenter.memorise(features, MASKS[:2], labelled=False)
    assert torch.allclose(labels.features.float(), predictions.features.float(), atol=0.02)
    assert torch.allclose(labels.pointer, predictions.pointer, atol=1e-4)


@every_engine
def test_it_tracks_as_it_segments(name):
    segmenter = shared(name)
    features = segmenter.encode(IMAGES)
    support = segmenter.memorise(features[[0, 1]], MASKS[:2])
    found, memory = segmenter.track(features[[2, 3]], [support], [], 2, SIZE)
    alone = segmenter.segment(features[[2, 3]], [support], SIZE)
    assert np.abs(found.gated - alone.gated).max() < ROUNDING
    later, _ = segmenter.track(features[[3, 2]], [support], [memory], 3, SIZE)
    assert len(memory) == 2 and np.isfinite(later.logits).all()
    forgetful, _ = segmenter.track(features[[3, 2]], [support], [], 3, SIZE)
    assert apart(later, forgetful) > 10 * ROUNDING


@every_engine
def test_bfloat16_on_a_cpu_changes_little(name):
    half = build(name, precision="bfloat16")
    for one, other in zip(
        shared(name).encode(IMAGES).levels, half.encode(IMAGES).levels, strict=True
    ):
        assert ROUNDING < float((one - other).abs().mean() / one.std()) < 0.1
    # of masks that random weights rate alike, another may be chosen: not all logits are near
    single, rounded = (answer(engine, [3, 2], [0, 1]) for engine in (shared(name), half))
    assert np.isfinite(rounded.logits).all()
    assert np.abs(single.object_score - rounded.object_score).max() < 0.1


def test_a_precision_that_there_is_not_is_refused():
    with pytest.raises(InstantiationException, match="precision=half: choose null, float32 or"):
        build("sam2_mini", precision="half")


@pytest.mark.parametrize("mask", [None, (1, 300), (4, 1, 1, 300), (300, 300), "bool"])
@pytest.mark.parametrize("more", [{}, {"scale": 0.3}])
def test_attention_in_portions_is_attention(mask, more):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 4, 2, 300, 16, generator=generator)  # more than a portion
    if mask == "bool":
        more = more | {"attn_mask": torch.arange(300)[None] < 200}
    elif mask is not None:
        more = more | {"attn_mask": torch.randn(mask, generator=generator)}
    expected = F.scaled_dot_product_attention(query, key, value, **more)
    assert torch.allclose(attention_in_portions(query, key, value, **more), expected, atol=1e-5)
    with AttentionInPortions():
        found = F.scaled_dot_product_attention(query, key, value, **more)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.gpu
@every_engine
def test_a_gpu_answers_as_the_cpu(name, monkeypatch):
    segmenter = build(name, device="cuda")
    segmenter.model.load_state_dict(shared(name).model.state_dict())
    half = answer(segmenter, [3, 2], [0, 1])
    assert np.isfinite(half.logits).all()
    monkeypatch.setattr(segmenter, "precision", torch.float32)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        single = answer(segmenter, [3, 2], [0, 1])
    assert apart(single, answer(shared(name), [3, 2], [0, 1])) < 2e-4
    assert apart(single, half) > 0
