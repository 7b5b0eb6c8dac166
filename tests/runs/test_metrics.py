"""Scores against numbers worked out by hand and against their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from fsmis.runs.evaluation import score

UNIT = (1.0, 1.0, 1.0)
SPACING = (7.7, 1.25, 1.25)
PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def square(rows: slice, columns: slice, slices: slice = slice(None)) -> np.ndarray:
    """Mask [3, 10, 10] that is true in a box."""
    mask = np.zeros((3, 10, 10), bool)
    mask[slices, rows, columns] = True
    return mask


def test_overlap_by_hand() -> None:
    # 4 x 4 against 4 x 6 pixels in three slices, 4 x 3 of them common
    result = score(square(slice(0, 4), slice(0, 4)), square(slice(0, 4), slice(1, 7)), UNIT)
    assert (result["n_slices"], result["tp"], result["fp"], result["fn"]) == (3, 36, 12, 36)
    assert result["dice"] == pytest.approx(2 * 36 / (48 + 72))
    assert result["iou"] == pytest.approx(36 / 84)


@pytest.mark.parametrize(
    ("axis", "millimetres"), [(0, 2 * 7.7), (1, 2 * 1.25), (2, 2 * 1.25)], ids=["z", "y", "x"]
)
def test_distances_are_in_mm_along_each_axis(axis: int, millimetres: float) -> None:
    truth = np.zeros((5, 5, 5), bool)
    truth[1, 1, 1] = True
    result = score(np.roll(truth, 2, axis=axis), truth, SPACING)
    assert result["hd95_mm"] == pytest.approx(millimetres)
    assert result["assd_mm"] == pytest.approx(millimetres)
    assert result["dice"] == 0


def test_slices_that_hold_the_organ_and_wrong_volume() -> None:
    truth, prediction = np.zeros((2, 6, 4, 4), bool)
    truth[1:4, 1, 1] = True
    prediction[3:6, 1, 1:3] = True
    result = score(prediction, truth, SPACING)
    counts = [result[f"slices_{name}"] for name in ("true", "found", "hit")]
    assert counts == [3, 3, 1]
    assert result["fp_ml"] == pytest.approx(5 * np.prod(SPACING) / 1000)


def test_a_perfect_prediction() -> None:
    mask = square(slice(2, 5), slice(3, 9))
    result = score(mask, mask.copy(), SPACING)
    assert (result["dice"], result["iou"], result["hd95_mm"], result["assd_mm"]) == (1, 1, 0, 0)
    assert (result["fp"], result["fn"]) == (0, 0)


@pytest.mark.parametrize("predicted_empty", [True, False])
def test_one_empty_mask_has_no_overlap_and_no_distance(predicted_empty: bool) -> None:
    empty, mask = np.zeros((3, 10, 10), bool), square(slice(2, 5), slice(3, 9))
    result = score(*((empty, mask) if predicted_empty else (mask, empty)), SPACING)
    assert (result["dice"], result["iou"], result["hd95_mm"], result["assd_mm"]) == (
        0,
        0,
        None,
        None,
    )
    assert (result["tp"], result["fp"] + result["fn"]) == (0, mask.sum())


def test_two_empty_masks_agree() -> None:
    empty = np.zeros((3, 10, 10), bool)
    result = score(empty, empty, SPACING)
    assert (result["dice"], result["iou"], result["hd95_mm"], result["assd_mm"]) == (
        1,
        1,
        None,
        None,
    )


@pytest.mark.parametrize(
    "prediction",
    [np.zeros((3, 10, 10), np.uint8), np.zeros((3, 10, 9), bool), np.zeros((10, 10), bool)],
    ids=["uint8", "shape", "2-D"],
)
def test_what_is_no_pair_of_masks_is_refused(prediction: np.ndarray) -> None:
    with pytest.raises(ValueError, match="masks must be bool"):
        score(prediction, np.zeros((3, 10, 10), bool), SPACING)


def surface(mask: np.ndarray) -> np.ndarray:
    """Positions in mm of the voxels with a face outside the mask, from the definition."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(3):
        inner &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    return (np.argwhere(padded & ~inner) - 1) * SPACING


@settings(max_examples=150, deadline=None)
@given(PAIRS)
def test_scores_are_their_definitions(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, truth = pair
    result = score(prediction, truth, SPACING)
    tp, fp, fn = result["tp"], result["fp"], result["fn"]
    assert tp + fp == prediction.sum() and tp + fn == truth.sum()
    if tp + fp + fn:
        assert result["dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert result["iou"] == pytest.approx(tp / (tp + fp + fn))
    if not prediction.any() or not truth.any():
        assert result["hd95_mm"] is result["assd_mm"] is None
        return
    between = cdist(surface(prediction), surface(truth))
    both = np.concatenate([between.min(axis=1), between.min(axis=0)])
    assert result["hd95_mm"] == pytest.approx(np.percentile(both, 95))
    assert result["assd_mm"] == pytest.approx(both.mean())
    assert score(truth, prediction, SPACING)["dice"] == pytest.approx(result["dice"])
