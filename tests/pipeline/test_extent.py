"""Which slices hold the organ: what stands out, what is ruled out, what that saves."""

from dataclasses import replace
from itertools import chain, repeat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsmis.errors import UserError
from fsmis.pipeline.extent import (
    HIGHEST,
    Extent,
    claimed_by_others,
    jumps_between,
    likeness,
    looks,
    standing_out,
)
from fsmis.segmenters import Answer
from fsmis.segmenters.sam2 import Sam2
from tests.methods.test_augment_match_prompt import build, episode  # noqa: F401 (a fixture)


@given(st.integers(1, 12), st.integers(0, 10), st.integers(0, 10), st.integers(0, 99))
def test_a_run_that_stands_out_is_found_through_noise(held, before, after, seed):
    truth = np.array([False] * before + [True] * held + [False] * after)
    noise = np.random.default_rng(seed).uniform(-0.05, 0.05, len(truth))
    expected = truth if truth.any() and not truth.all() else None
    found = standing_out(truth + noise)
    if expected is not None:
        np.testing.assert_array_equal(found, expected)


def test_the_best_run_is_that_of_all_runs():
    values = np.random.default_rng(1).normal(size=9)
    best, kept = -1.0, None
    for start in range(9):
        for end in range(start + 1, 10):
            inside = np.zeros(9, bool)
            inside[start:end] = True
            if inside.all() or values[inside].mean() <= values[~inside].mean():
                continue
            gap = values[inside].mean() - values[~inside].mean()
            between = gap**2 * inside.sum() * (~inside).sum()
            if between > best:
                best, kept = between, inside
    np.testing.assert_array_equal(standing_out(values), kept)
    assert standing_out(np.ones(5)).all() and standing_out(np.ones(1)).all()


NUMBERS = ("gap", "place", "near", "jump", "margin")


def extent(**changes) -> Extent:
    usual = {
        "when": "whole_volume",
        "gap": 0.1,
        "place": 1.0,
        "near": 40.0,
        "far": 100.0,
        "jump": 0.2,
        "margin": 0.0,
    }
    return Extent(**usual | changes)


def whole(episode):  # noqa: F811
    """The same episode, asked for every slice of the query."""
    tasks = {
        organ: replace(task, query_slices=np.arange(8), part=np.repeat([0, 1], 4))
        for organ, task in episode.organs.items()
    }
    return replace(episode, organs=tasks, whole_volume=True)


def looking(iou):
    """What masks hold, the liker the labels the higher their predicted overlap, and the labels."""
    iou = np.asarray(iou, np.float32)
    return [np.column_stack([iou, 1 - iou])], [np.tile(np.float32([1, 0]), (len(iou), 1))]


def test_slices_beyond_the_extent_are_ruled_out(episode):  # noqa: F811
    logits = np.full((16, 4, 4), 3.0, np.float32)
    iou = np.tile([0.1, 0.2, 0.7, 0.8, 0.7, 0.2, 0.1, 0.1], 2).astype(np.float32)
    answer = Answer(logits, np.ones(16, np.float32), iou)
    kept = extent().limit(whole(episode), answer, *looking(iou), None, 0)
    expected = np.tile([0, 0, 1, 1, 1, 0, 0, 0], 2).astype(bool)
    np.testing.assert_array_equal(~kept.excluded, expected)
    np.testing.assert_array_equal(kept.masks.any(axis=(1, 2)), expected)


@pytest.mark.parametrize(("narrowest", "last"), [(0, 2), (0.25, 2), (None, 6)])
def test_of_two_parts_the_one_near_the_labelled_slice_is_kept(episode, narrowest, last):  # noqa: F811
    logits = np.full((16, 8, 8), -3.0, np.float32)
    logits[0:3, :2, :2] = logits[3:8, 4:7, 4:7] = logits[8:] = 3  # the part far away is larger
    answer = Answer(logits, np.ones(16, np.float32), np.ones(16, np.float32))
    stage = extent(near=10.0)
    stage.held = lambda *_: np.arange(8) < 7
    places = np.arange(8) - 1.0  # liver is labelled in support slices 1 and 3
    kept = stage.limit(whole(episode), answer, *looking(answer.iou), places, narrowest)
    np.testing.assert_array_equal(np.flatnonzero(~kept.excluded[:8]), np.arange(last + 1))


def test_an_organ_found_nowhere_is_left_for_zoom_to_find(episode):  # noqa: F811
    logits = np.full((16, 4, 4), -3.0, np.float32)
    logits[8:] = 3.0
    iou = np.tile([0.1, 0.2, 0.7, 0.8, 0.7, 0.2, 0.1, 0.1], 2).astype(np.float32)
    answer = Answer(logits, np.ones(16, np.float32), iou)
    kept = extent().limit(whole(episode), answer, *looking(iou), None, 0)
    assert not kept.excluded[:8].any() and kept.excluded[8:].any()


def test_an_organ_that_goes_through_keeps_every_slice():
    """Small differences, as within an organ, are no end of it; an empty mask is none."""
    overlap = np.array([0.7, 0.7, 0.72, 0.75, 0.76, 0.75, 0.71])
    found = np.ones(7, bool)
    assert extent().held(overlap[:, None], found).all()
    assert not extent(gap=0.0).held(overlap[:, None], found).all()
    found[0] = False
    np.testing.assert_array_equal(extent().held(overlap[:, None], found), found)
    assert not extent().held(overlap[:, None], np.zeros(7, bool)).any()


def test_of_two_runs_alike_the_one_near_the_labelled_slice_is_kept():
    cue = np.array([0, 9, 9, 9, 0, 0, 0, 0, 9, 9, 0], float)[:, None]
    found = np.ones(11, bool)
    away = np.maximum(0, np.abs(np.arange(11) - 8.5) - 0.5) * 10
    np.testing.assert_array_equal(extent().held(cue, found).nonzero()[0], [1, 2, 3])
    np.testing.assert_array_equal(extent().held(cue, found, away).nonzero()[0], [8, 9])
    # what is kept begins near the labelled slice, however little that weighs
    little = extent(place=1e-6).held(cue, found, away)
    assert little[away <= 20].any()


def test_a_run_has_to_hold_a_slice_that_is_near():
    values = np.array([5.0, 5.0, 0.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(standing_out(values).nonzero()[0], [0, 1])
    near = np.arange(6) == 3
    assert standing_out(values, near)[3]
    np.testing.assert_array_equal(standing_out(values, np.zeros(6, bool)), standing_out(values))


def test_masks_that_jump_are_not_of_one_organ():
    masks = np.zeros((6, 20, 20), bool)
    masks[:3, 2:6, 2:6] = True
    masks[3:5, 12:16, 12:16] = True
    jumps = jumps_between(masks)
    np.testing.assert_allclose(jumps, [0, 0, 0.8, 0, 0.8])
    cue = np.array([5, 5, 5, 5, 5, 1, 0, 0], float)[:, None]
    found, breaks = np.ones(8, bool), np.array([0, 0, 0.8, 0, 0.8, 0, 0])
    assert extent().held(cue, found).nonzero()[0].tolist() == [0, 1, 2, 3, 4]
    kept = extent(jump=1.0).held(cue, found, None, breaks)
    assert kept.nonzero()[0].tolist() == [0, 1, 2]


def test_ends_are_taken_in_where_there_is_a_mask():
    cue = np.array([0.0] * 4 + [5.0] * 10 + [0.0] * 4)[:, None]
    found = np.ones(18, bool)
    assert extent().held(cue, found).nonzero()[0][[0, -1]].tolist() == [4, 13]
    assert extent(margin=0.05).held(cue, found).nonzero()[0][[0, -1]].tolist() == [3, 14]
    assert extent(margin=0.11).held(cue, found).nonzero()[0][[0, -1]].tolist() == [2, 15]
    found[3] = False
    assert extent(margin=0.05).held(cue, found).nonzero()[0][[0, -1]].tolist() == [4, 14]


def test_what_lies_between_labelled_slices_is_kept():
    values = np.array([0.0, 5.0, 5.0, 0.0, 1.0, 0.0])
    between = np.arange(6) >= 4
    assert standing_out(values).nonzero()[0].tolist() == [1, 2]
    assert standing_out(values, None, None, between)[1:].all()
    assert standing_out(values, whole=np.ones(6, bool)).all()


def test_likeness_is_that_of_what_the_masks_hold(episode):  # noqa: F811
    segmenter = build("matcher=identity").segmenter
    features = segmenter.encode(episode.query.image[:2])
    left, right = np.zeros((2, 1, 96, 96), bool)
    left[0, 20:60, 10:40] = right[0, 20:60, 60:90] = True
    of_left, of_right, of_none = (
        looks(features[:1], masks) for masks in (left, right, np.zeros_like(left))
    )
    same, other = likeness(of_left, of_left), likeness(of_right, of_left)
    assert (
        same.shape == (1, 2)
        and (same == np.arctanh(np.float32(HIGHEST))).all()
        and (other < same).all()
    )
    np.testing.assert_array_equal(likeness(of_none, of_left), 0)


def test_a_slice_that_looks_unlike_the_others_of_its_run_is_ruled_out(episode):  # noqa: F811
    seen = np.tile(np.float32([1, 0, 0]), (16, 1))
    seen[[0, 1, 7, 8, 9, 15]] = [0, 1, 0]
    seen[[6, 14]] = [0.3, 0, 1]  # as like the label as the others are, and unlike them
    labelled = np.tile(np.float32([0, 0, 1]), (16, 1))
    labelled[[0, 1, 7, 8, 9, 15]] = [1, 0, 0]
    labelled[[6, 14]] = [1, 0, 0]
    labelled[2:6] = labelled[10:14] = [0.3, 0, 1]
    iou = np.tile([0.2, 0.2, 0.8, 0.8, 0.8, 0.8, 0.6, 0.2], 2).astype(np.float32)
    answer = Answer(np.full((16, 4, 4), 3.0, np.float32), np.ones(16, np.float32), iou)
    kept = extent().limit(whole(episode), answer, [seen], [labelled], None, None)
    assert np.flatnonzero(~kept.excluded[:8]).tolist() == [2, 3, 4, 5]
    alike = [np.where(np.arange(16)[:, None] % 8 == 6, seen[2], seen)]
    kept = extent().limit(whole(episode), answer, alike, [labelled], None, None)
    assert np.flatnonzero(~kept.excluded[:8]).tolist() == [2, 3, 4, 5, 6]


def middle(cues, *others):
    """The slices 2 to 5, whatever the cues say; random weights know no better."""
    return (np.arange(len(cues)) >= 2) & (np.arange(len(cues)) <= 5)


def test_what_a_surer_organ_claims_counts_against_a_mask():
    """Three organs in two slices: the second takes half of the first's mask in slice 0."""
    logits = np.full((6, 4, 4), -1.0)
    logits[0, :2], logits[2, 1:3] = 1, 1  # slice 0, of organs 1 and 2
    logits[1, :2], logits[3, :2] = 1, 1  # slice 1, the same place
    logits[5] = 1  # slice 1 of organ 3, all of it, but not sure
    overlap = np.array([0.5, 0.9, 0.8, 0.7, 0.6, 0.1])
    lost = claimed_by_others(logits, overlap, 3)
    np.testing.assert_allclose(lost, [0.5, 0, 0, 1, 0, 0.5])


def test_the_support_is_encoded_whole_where_its_place_is_looked_for(episode, monkeypatch):  # noqa: F811
    shown = []
    encode = Sam2.encode

    def counted(self, images):
        shown.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Sam2, "encode", counted)
    totals = []
    for place in (0, 1):
        shown.clear()
        build("matcher=ncc", "method.volume_pass.reach=0", f"method.extent.place={place}").answer(
            whole(episode)
        )
        totals.append(sum(shown))
    assert totals[1] - totals[0] == len(episode.support.image)


def test_the_second_pass_leaves_out_what_was_ruled_out(episode):  # noqa: F811
    passes = ["method.volume_pass.reach=1", "method.volume_pass.confidence=0"]
    on, off = (
        build("matcher=ncc", *passes, f"method.extent.when={when}")
        for when in ("whole_volume", "never")
    )
    on.extent.held = middle
    asked = whole(episode)
    answers = on.answer(asked)
    assert all(answer.excluded.sum() == 4 for answer in answers.values())
    assert not any(answer.excluded.any() for answer in off.answer(asked).values())
    assert not any(answer.excluded.any() for answer in on.answer(episode).values())
    for organ, mask in on.segment(asked).items():
        assert not mask[answers[organ].excluded].any()


@pytest.mark.parametrize("method", ["sam2_single", "sam2_volume", "augment_match_prompt"])
def test_zoom_asks_about_kept_slices_alone(episode, method):  # noqa: F811
    own = [] if method == "augment_match_prompt" else [f"method={method}"]
    built = build(*own, "method.extent.when=whole_volume", "method.zoom.passes=1")
    built.extent.held = middle
    asked = []
    plain = built.answer

    def answer(some):
        asked.append({organ: set(task.query_slices) for organ, task in some.organs.items()})
        return plain(some)

    built.answer = answer
    masks = built.segment(whole(episode))
    for closer in asked[1:]:
        for organ, slices in closer.items():
            assert len(slices) < 8
            assert set(np.flatnonzero(masks[organ].any(axis=(1, 2)))) <= slices


def test_an_organ_ruled_out_of_every_slice_is_empty_and_stops_nothing(episode):  # noqa: F811
    built = build("matcher=ncc", "method.extent.when=whole_volume", "method.zoom.passes=1")
    organs = chain([np.zeros(8, bool)], repeat(middle(np.zeros((8, 1)))))
    built.extent.held = lambda *cues: next(organs)
    masks = built.segment(whole(episode))
    liver, spleen = masks.values()
    assert not liver.any() and liver.shape == spleen.shape == (8, 96, 96)


@pytest.mark.parametrize(
    "changes",
    [
        {"when": "always"},
        {"gap": 2},
        {"place": -1},
        {"near": 0},
        {"far": 10},
        {"jump": -1},
        {"margin": -1},
    ],
)
def test_bad_settings_are_refused(changes):
    with pytest.raises(UserError, match=r"method\.extent\."):
        extent(**changes)
