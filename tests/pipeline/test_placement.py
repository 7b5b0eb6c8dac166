"""Where the support lies in the query: shifts and stretches are found, also beyond an end."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsmis.pipeline.alignment import GRID, body_box, descriptors, places
from fsmis.segmenters.features import Features


def body(at: np.ndarray, seed: int = 0) -> np.ndarray:
    """Descriptors [N, 40] of slices at heights ``at``: smooth along the body, noisy a little."""
    rng = np.random.default_rng(seed)
    rates, phases = rng.uniform(0.15, 0.4, 40), rng.uniform(0, 6.3, 40)
    waves = np.sin(at[:, None] * rates + phases)
    return (waves + rng.normal(0, 0.02, waves.shape)).astype(np.float32)


@given(st.integers(-8, 8), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.9, 1.0, 1.1]))
@settings(deadline=None, max_examples=30)
def test_shift_slice_distance_and_stretch_are_found(shift, ratio, stretch):
    support = body(np.arange(30.0), seed=1)
    heights = (np.arange(30 * ratio) - shift * ratio) / (ratio * stretch)  # in support slices
    found = places(support, body(heights, seed=1), ratio)
    expected = np.arange(30) * ratio * stretch + shift * ratio
    assert np.abs(found - expected).mean() < 1.5 * ratio


def test_too_few_slices_have_no_place():
    assert places(body(np.arange(2.0)), body(np.arange(30.0)), 1.0) is None


def test_a_flat_volume_has_some_place_or_none_and_no_error():
    flat = np.ones((9, 40), np.float32)
    found = places(flat, flat, 1.0)
    assert found is None or np.isfinite(found).all()


@pytest.mark.parametrize("side", [4, 16])
def test_descriptors_take_any_size(side):
    level = torch.arange(2 * 3 * side * side, dtype=torch.float32).view(2, 3, side, side)
    described = descriptors(Features([level], torch.zeros(1)), (0.2, 0.1, 0.9, 1.0))
    assert described.shape == (2, 3 * GRID**2) and described.dtype == np.float32


@given(st.integers(0, 20), st.integers(0, 20), st.integers(8, 24), st.integers(8, 24))
@settings(deadline=None, max_examples=30)
def test_the_box_holds_the_body_and_no_air(top, left, height, width):
    volume = np.zeros((3, 50, 60), np.float32)
    volume[1, top : top + height, left : left + width] = 0.7
    volume[2, top, left] = 1.0  # brighter fat
    box = (left / 60, top / 50, (left + width) / 60, (top + height) / 50)
    assert body_box(volume) == pytest.approx(box)


def test_a_body_is_described_alike_in_any_field_of_view():
    rows, columns = np.mgrid[0:16, 0:16].astype(np.float32)
    body = torch.from_numpy(np.stack([rows, columns, rows * columns / 16]))[None]
    wide = torch.zeros(1, 3, 32, 32)
    wide[..., 8:24, 4:20] = body
    whole = descriptors(Features([body], torch.zeros(1)), (0, 0, 1, 1))
    part = descriptors(Features([wide], torch.zeros(1)), (4 / 32, 8 / 32, 20 / 32, 24 / 32))
    inner = np.ones((3, GRID, GRID), bool)
    inner[:, [0, -1]] = inner[:, :, [0, -1]] = False  # samples at the rim see what lies beyond
    np.testing.assert_allclose(part[0][inner.ravel()], whole[0][inner.ravel()], atol=1e-5)


def test_nothing_but_air_has_the_whole_slice_for_a_box():
    assert body_box(np.zeros((2, 8, 8), np.float32)) == (0, 0, 1, 1)
