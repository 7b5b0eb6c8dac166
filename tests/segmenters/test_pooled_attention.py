"""Attention to pooled memories: exact where the cells are alike, and of a quarter of the tokens."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException

from tests.segmenters.engines import build, frames, shared

SIDE, FRAMES, POINTERS = 4, 3, 2
SIZE = (100, 90)


def attention(pool: int) -> torch.nn.Module:
    segmenter = build("sam2_mini", pool_memory=pool)
    return segmenter.model.memory_attention.layers[0].cross_attn_image


@pytest.fixture(scope="module")
def whole() -> torch.nn.Module:
    return attention(1)


@pytest.fixture(scope="module")
def pooled(whole) -> torch.nn.Module:
    module = attention(2)
    module.load_state_dict(whole.state_dict())
    return module


def tokens(module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, and memories of which every 2 x 2 cells are the same."""
    generator = torch.Generator().manual_seed(0)
    width = module.k_proj.in_features
    coarse = torch.randn(FRAMES, width, SIDE // 2, SIDE // 2, generator=generator)
    cells = F.interpolate(coarse, scale_factor=2).permute(0, 2, 3, 1).reshape(1, -1, width)
    pointers = torch.randn(1, POINTERS, width, generator=generator)
    queries = torch.randn(1, SIDE**2, module.q_proj.in_features, generator=generator)
    return queries, torch.cat([cells, pointers], 1), torch.cat([cells.flip(2), pointers], 1)


def attend(module, without_place: bool = False) -> torch.Tensor:
    queries, keys, values = tokens(module)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        if without_place:
            turns = torch.ones(SIDE**2, module.q_proj.out_features // 2, dtype=torch.complex64)
            patch.setattr(module, "compute_cis", lambda **_: turns)
            patch.setattr(module, "freqs_cis", turns)
        return module(queries, keys, values, num_k_exclude_rope=POINTERS)


def test_alike_cells_lose_nothing_but_their_places(whole, pooled):
    exact, found = attend(whole, without_place=True), attend(pooled, without_place=True)
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-5)
    assert exact.std(1).mean() > 1e-3
    placed, near = attend(whole), attend(pooled)
    assert (near - placed).abs().max() < 0.25 * (placed - exact).abs().max()


def test_a_quarter_of_the_tokens_is_attended_to(pooled, monkeypatch):
    seen = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, k, *a: seen.append(k.shape) or original(q, k, *a),
    )
    attend(pooled)
    assert [shape[2] for shape in seen] == [FRAMES * SIDE**2 // 4 + POINTERS]


def test_a_segmenter_that_pools_answers_nearly_alike():
    exact, pooling = shared("sam2_mini"), build("sam2_mini", pool_memory=2)
    pooling.model.load_state_dict(exact.model.state_dict())
    images, masks = frames(3, SIZE)
    answers = []
    for segmenter in (exact, pooling):
        features = segmenter.encode(images)
        memory = segmenter.memorise(features[[0, 0]], masks[[0, 1]])
        answers.append(segmenter.segment(features[[1, 2]], [memory, memory], SIZE).logits)
    difference = np.abs(answers[0] - answers[1]).max()
    assert 0 < difference < 0.3 * np.ptp(answers[0])


def test_other_pools_are_refused():
    with pytest.raises(InstantiationException, match="pool_memory=3: choose 1 or 2"):
        build("sam2_mini", pool_memory=3)
