"""Stage 1: copies of a labelled slice stay labelled, reproducible, and inside the image."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from torchvision.transforms.v2 import InterpolationMode

from fsmis.errors import UserError
from fsmis.pipeline.support_set import Appearance, Geometry, SupportSetConstruction

CONF = Path(__file__).parents[2] / "conf" / "support_set"
KEY = "chaos_mri/8/18"


@cache
def composed(config: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(config, overrides=["seed=0"])


def construction(config: str = "default", **changes: Any) -> SupportSetConstruction:
    return instantiate(composed(config), **changes)


def disc(height: int, width: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


@pytest.fixture
def masks() -> dict[str, np.ndarray]:
    return {"liver": disc(64, 80, 28, 26, 14), "spleen": disc(64, 80, 30, 60, 7)}


@pytest.fixture
def image(masks: dict[str, np.ndarray]) -> np.ndarray:
    noise = np.random.default_rng(0).random((64, 80), dtype=np.float32)
    return (0.1 * noise + 0.5 * masks["liver"] + 0.8 * masks["spleen"]).astype(np.float32)


def test_sizes_of_the_set(image, masks):
    assert len(construction(count=5).construct(image, masks, 11, KEY).images) == 5
    assert len(construction("paper").construct(image, masks, 11, KEY).images) == 2 * 11 + 1
    assert (
        len(construction("paper", per_query_slice=0).construct(image, masks, 11, KEY).images) == 1
    )
    assert len(construction(kind="none").construct(image, masks, 11, KEY).images) == 1


@pytest.mark.parametrize("kind", ["none", "affine", "jitter", "both"])
def test_original_is_first_and_untouched(image, masks, kind):
    built = construction(kind=kind, count=3).construct(image, masks, 1, KEY)
    np.testing.assert_array_equal(built.images[0], image)
    for organ, mask in masks.items():
        assert built.masks[organ].dtype == bool
        np.testing.assert_array_equal(built.masks[organ][0], mask)
    assert built.augmentations[0] == (Geometry(), Appearance())


def test_jitter_leaves_masks_and_affine_leaves_intensities(image, masks):
    jitter = construction(kind="jitter", count=6).construct(image, masks, 1, KEY)
    assert all((jitter.masks[organ] == masks[organ]).all() for organ in masks)
    assert all(np.abs(copy - image).max() > 0.01 for copy in jitter.images[1:])
    flat = np.full_like(image, 0.5)
    affine = construction(kind="affine", count=6).construct(flat, masks, 1, KEY)
    np.testing.assert_allclose(affine.images, 0.5, atol=1e-6)
    assert all((copy != masks["liver"]).any() for copy in affine.masks["liver"][1:])


def test_kinds_share_their_draws(image, masks):
    drawn = {
        kind: construction(kind=kind, count=4).construct(image, masks, 1, KEY).augmentations
        for kind in ("affine", "jitter", "both")
    }
    for copy in range(4):
        assert drawn["both"][copy] == (drawn["affine"][copy][0], drawn["jitter"][copy][1])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(40, 70), st.integers(40, 70)),
    centre=st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7)),
    radius=st.floats(3, 9),
)
def test_image_and_mask_move_together_and_organ_stays(seed, shape, centre, radius):
    organ = disc(*shape, centre[0] * shape[0], centre[1] * shape[1], radius)
    built = construction(kind="affine", count=4, seed=seed).construct(
        organ.astype(np.float32), {"organ": organ}, 1, KEY
    )
    for copy, mask, (geometry, _) in zip(
        built.images, built.masks["organ"], built.augmentations, strict=True
    ):
        # Bilinear and nearest agree wherever bilinear is not torn between inside and outside.
        assert mask[copy > 0.999].all()
        assert not mask[copy < 0.001].any()
        assert mask.sum() >= 0.8 * organ.sum() * geometry.scale**2
        assert 0 <= copy.min() <= copy.max() <= 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["affine", "jitter", "both"]))
def test_first_copies_do_not_depend_on_count(seed, kind):
    rng = np.random.default_rng(seed)
    image = rng.random((48, 48), dtype=np.float32)
    masks = {"organ": disc(48, 48, 20, 24, 6)}
    small = construction(kind=kind, count=4, seed=seed).construct(image, masks, 1, KEY)
    large = construction(kind=kind, count=9, seed=seed).construct(image, masks, 1, KEY)
    np.testing.assert_array_equal(small.images, large.images[:4])
    np.testing.assert_array_equal(small.masks["organ"], large.masks["organ"][:4])


def test_stream_depends_on_seed_and_key_alone(image, masks):
    builder = construction(count=4)
    first = builder.construct(image, masks, 1, KEY)
    other = builder.construct(image, masks, 1, "chaos_mri/8/19")
    again = builder.construct(image, masks, 7, KEY)
    np.testing.assert_array_equal(first.images, again.images)
    assert first.augmentations[1:] != other.augmentations[1:]
    reseeded = construction(count=4, seed=1).construct(image, masks, 1, KEY)
    assert first.augmentations[1:] != reseeded.augmentations[1:]


def test_draws_are_the_same_on_every_machine(image, masks):
    geometry, appearance = construction(count=2).construct(image, masks, 1, KEY).augmentations[1]
    numbers = [geometry.rotation_deg, *geometry.translation, geometry.scale, *geometry.shear_deg]
    numbers += [appearance.brightness, appearance.contrast, appearance.gamma]
    expected = [14.475424787856854, -0.013601674275978083, 0.04535889780122206, 1.1091363573748716]
    expected += [-1.5106873674644063, 6.031857015515394]
    expected += [0.9590945537237398, 1.1976158668294423, 1.1650311982397283]
    np.testing.assert_allclose(numbers, expected, rtol=1e-12)


def test_translation_moves_the_organ_by_the_fraction_of_the_size():
    organ = disc(60, 80, 30, 40, 8)
    moved = Geometry(translation=(0.1, -0.2)).warp(
        torch.from_numpy(organ[None].astype(np.float32)), InterpolationMode.NEAREST, 0.0
    )
    np.testing.assert_array_equal(moved[0].numpy() > 0, disc(60, 80, 30 - 12, 40 + 8, 8))


def test_organ_pushed_out_is_drawn_again(image):
    corner = {"organ": disc(64, 80, 8, 8, 5)}
    wild = construction(kind="affine", count=12, translation=0.4).construct(image, corner, 1, KEY)
    scales = [geometry.scale for geometry, _ in wild.augmentations]
    areas = wild.masks["organ"].sum(axis=(1, 2))
    assert (areas >= 0.8 * corner["organ"].sum() * np.square(scales)).all()
    assert sum(geometry != Geometry() for geometry, _ in wild.augmentations) > 6
    # Without the check the same draws lose the organ.
    lost = construction(kind="affine", count=12, translation=0.4, min_kept=0)
    unchecked = lost.construct(image, corner, 1, KEY).masks["organ"].sum(axis=(1, 2))
    assert (unchecked > 0).all() and unchecked.min() < areas.min()


def test_original_geometry_when_no_draw_keeps_the_organ(image, masks):
    hopeless = construction(kind="both", count=3, scale=[9, 9], max_draws=2)
    built = hopeless.construct(image, masks, 1, KEY)
    assert [geometry for geometry, _ in built.augmentations] == [Geometry()] * 3
    assert (built.masks["spleen"] == masks["spleen"]).all()
    assert built.augmentations[1][1] != Appearance()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "colour"}, "support_set.kind=colour"),
        ({"per_query_slice": 2}, "exactly one"),
        ({"count": None}, "exactly one"),
        ({"count": 0}, "support_set.count=0"),
        ({"gamma": [0, 1]}, "support_set.gamma"),
        ({"scale": [1.2, 0.8]}, "support_set.scale"),
        ({"rotation_deg": -5}, "support_set.rotation_deg=-5"),
        ({"translation": float("nan")}, "support_set.translation=nan"),
        ({"min_kept": 80}, "support_set.min_kept=80"),
        ({"max_draws": 0}, "max_draws=0"),
    ],
)
def test_bad_settings(changes, named):
    with pytest.raises(Exception, match=named) as raised:
        construction(**changes)
    # Hydra wraps what a constructor raises.
    assert isinstance(raised.value.__cause__, UserError)


def test_bad_slices(image, masks):
    builder = construction(count=2)

    def refuses(message: str, image: np.ndarray, masks: dict[str, np.ndarray]) -> None:
        with pytest.raises(UserError, match=message) as raised:
            builder.construct(image, masks, 1, KEY)
        assert KEY in str(raised.value) and "\n" not in str(raised.value)

    refuses("spleen is empty", image, {**masks, "spleen": np.zeros_like(masks["spleen"])})
    refuses("shape", image, {"liver": masks["liver"][:-1]})
    refuses("shape", image, {"liver": masks["liver"][None]})
    refuses("other than 0 and 1", image, {"liver": 255 * masks["liver"].astype(np.uint8)})
    refuses("other than 0 and 1", image, {"liver": 0.5 * masks["liver"]})
    refuses("finite", np.full_like(image, np.nan), masks)
    refuses(r"scaled to \[0, 1\]", 255 * image, masks)
    refuses("2-D", image[None], masks)
    refuses("no mask", image, {})
