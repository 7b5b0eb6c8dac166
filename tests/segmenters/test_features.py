"""Prototype mathematics on feature maps whose answer is known."""

import torch

from fsmis.segmenters.features import (
    adaptive_prototypes,
    cosine_logits,
    local_prototypes,
    masked_average,
    on_grid,
)


def test_masks_on_the_grid_are_the_covered_part_of_each_cell():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4, :4] = mask[0, 4, 4] = True
    assert on_grid(mask, (2, 2))[0].tolist() == [[1, 0], [0, 1 / 16]]


def test_the_masked_average_is_the_weighted_mean():
    features = torch.randn(2, 3, 4, 5)
    masks = torch.rand(2, 4, 5)
    expected = [(features[b].flatten(1) @ masks[b].flatten()) / masks[b].sum() for b in range(2)]
    assert torch.allclose(masked_average(features, masks), torch.stack(expected), atol=1e-6)
    assert not masked_average(features, torch.zeros(2, 4, 5)).any()


def test_local_prototypes_count_where_the_mask_fills_their_window():
    features = torch.arange(24.0).view(1, 1, 4, 6)
    mask = torch.zeros(1, 4, 6)
    mask[0, :2, :4] = 1
    mask[0, 2, 0] = 1
    vectors, counts = local_prototypes(features, mask, window=2, threshold=0.95)
    assert counts.tolist() == [[True, True, False, False, False, False]]
    assert vectors[0, :2, 0].tolist() == [3.5, 5.5]
    # a window that the grid does not hold whole averages what lies in it
    vectors, _ = local_prototypes(features, mask, window=4, threshold=0.95)
    assert vectors[0, :, 0].tolist() == [10.5, 13.5]


def test_the_average_stands_in_where_no_window_is_filled():
    features, mask = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4)
    mask[0, :2, :2], mask[1, 0, 0] = 1, 1
    vectors, counts = adaptive_prototypes(features, mask, 2, 0.95, always_average=False)
    assert counts.tolist() == [[True, *[False] * 4], [*[False] * 4, True]]
    assert torch.allclose(vectors[1, -1], features[1, :, 0, 0], atol=1e-6)
    _, counts = adaptive_prototypes(features, mask, 2, 0.95, always_average=True)
    assert counts[0].tolist() == [True, False, False, False, True]


def test_logits_are_the_soft_maximum_of_the_prototypes_that_count():
    features = torch.randn(1, 3, 4, 4)
    one, far = torch.randn(1, 1, 3), torch.randn(1, 1, 3)
    single = cosine_logits(features, one)
    direct = 20 * torch.cosine_similarity(features, one[0, 0].view(1, 3, 1, 1))
    assert torch.allclose(single, direct, atol=1e-5)
    both = torch.cat([one, far], 1)
    assert torch.allclose(cosine_logits(features, both, torch.tensor([[True, False]])), single)
    similarities = torch.stack([single, cosine_logits(features, far)])
    soft = cosine_logits(features, both)
    assert (soft <= similarities.amax(0) + 1e-5).all()
    assert (soft >= similarities.mean(0) - 1e-5).all()


def test_gradients_reach_the_features_and_are_finite():
    support = torch.randn(1, 3, 4, 4, requires_grad=True)
    mask = torch.zeros(1, 4, 4)
    mask[0, :2, :2] = 1
    prototypes = adaptive_prototypes(support, mask, 2, 0.95, always_average=True)
    cosine_logits(torch.randn(1, 3, 4, 4), *prototypes).sum().backward()
    assert support.grad is not None and support.grad.isfinite().all() and support.grad.any()
