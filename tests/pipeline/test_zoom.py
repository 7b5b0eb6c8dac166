"""Coarse to fine: where crops are cut, what is put back, what it costs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsmis.data.dataset import Scan
from fsmis.data.protocol import Episode, OrganTask
from fsmis.errors import UserError
from fsmis.pipeline.alignment import Crops
from fsmis.pipeline.masks import boxes, largest_component
from fsmis.pipeline.zoom import Zoom
from fsmis.segmenters import Answer
from tests.methods.test_augment_match_prompt import build

SHAPE = (80, 100)
SLICES = np.arange(2, 8)


def main_part(_task: OrganTask, found: Answer) -> np.ndarray:
    return largest_component(found.masks)


def answer(masks: np.ndarray) -> Answer:
    """A certain answer of these masks."""
    logits = np.where(masks, 8, -8).astype(np.float32)
    return Answer(logits, np.ones(len(masks), np.float32), np.ones(len(masks), np.float32))


def disc(y: float, x: float, radius: float, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    rows, columns = np.indices(shape) + 0.5
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def episode_of(organs: dict[str, tuple[float, float, float]], spacing=(5.0, 1.0, 1.0)) -> Episode:
    """Discs (y, x, radius), the same in support and query; their images are the masks' sum."""
    masks = {organ: disc(*place) for organ, place in organs.items()}
    picture = np.clip(sum(mask * 0.4 for mask in masks.values()), 0, 1).astype(np.float32)
    scan = Scan("1", np.stack([picture] * 10), None, spacing, np.eye(4))
    tasks = {
        organ: OrganTask(organ, np.array([4]), mask[None], SLICES, np.zeros(len(SLICES), int))
        for organ, mask in masks.items()
    }
    return Episode("phantom", 0, scan, replace(scan, id="2"), tasks)


def found(episode: Episode) -> dict[str, np.ndarray]:
    return {
        organ: np.repeat(task.support_masks, len(SLICES), 0)
        for organ, task in episode.organs.items()
    }


def zoom(**changes) -> Zoom:
    usual = {
        "passes": 1,
        "factor": 2.0,
        "share": 1.0,
        "size": 64,
        "percentiles": None,
        "magnified": 0.0,
        "wide": 4.0,
        "doubt": 0.5,
    }
    return Zoom(**usual | changes)


@given(st.tuples(st.floats(10, 70), st.floats(10, 90)), st.floats(12, 60), st.integers(48, 160))
@settings(deadline=None, max_examples=25)
def test_what_is_put_back_lies_where_it_was_cut(centre, side, size):
    mask = disc(40, 50, 14)
    crops = Crops(np.array([centre]), np.array([side, side]), SHAPE)
    back, inside = crops.put_back(crops.cut(mask[None], (size, size)))
    rows, columns = np.indices(SHAPE) + 0.5
    expected = (abs(rows - centre[0]) <= side / 2) & (abs(columns - centre[1]) <= side / 2)
    assert (inside[0] != expected).mean() < 0.02  # pixels on the very edge may round either way
    core = inside[0] & (disc(40, 50, 12) | ~disc(40, 50, 16))  # away from the blurred rim
    np.testing.assert_array_equal(back[0][core] >= 0.5, mask[core])


def test_a_mask_between_two_samples_leaves_a_pixel():
    mask = np.zeros((2, 32, 4), bool)
    mask[0, 8:24, 1:3] = True
    crops = Crops(np.array([(16.0, 2.0)] * 2), np.array([106.7, 128.0]), (32, 4))
    cut = crops.cut_masks(mask, (32, 32))
    assert cut[0].any() and not cut[1].any()


def test_boxes_of_masks():
    masks = np.zeros((2, 10, 12), bool)
    masks[0, 2:5, 3:9] = True
    centres, extents = boxes(masks)
    assert centres[0].tolist() == [3.5, 6.0] and extents[0].tolist() == [3, 6]
    assert np.isnan(centres[1]).all()


def test_stray_pixels_of_a_label_do_not_widen_the_window():
    episode = episode_of({"kidney": (40, 50, 10)})
    task = episode.organs["kidney"]
    stray = task.support_masks.copy()
    stray[0, 2, 2] = True
    worse = replace(episode, organs={"kidney": replace(task, support_masks=stray)})
    before, after = (zoom().cut(some, found(episode)) for some in (episode, worse))
    np.testing.assert_array_equal(after.crops.sides, before.crops.sides)
    np.testing.assert_array_equal(after.episode.support.image, before.episode.support.image)


def test_support_and_query_are_cut_to_the_same_side_in_mm():
    episode = episode_of({"kidney": (40, 50, 10)})
    finer = replace(episode.support, spacing=(5.0, 0.5, 0.5))
    cut = zoom().cut(replace(episode, support=finer), found(episode))
    # the query's disc is the larger: 20 mm, twice that is 40 mm
    assert cut.crops.sides.tolist() == [40, 40]
    support, query = cut.episode.support, cut.episode.query
    assert support.spacing == query.spacing == (5.0, 40 / 64, 40 / 64)
    share = cut.episode.organs["kidney"].support_masks.mean()
    assert share == pytest.approx(np.pi * 5**2 / 40**2, rel=0.05)  # a disc of 5 mm in 40 mm
    assert (query.image[4] > 0.2).mean() == pytest.approx(np.pi * 10**2 / 40**2, rel=0.05)


def test_a_perfect_second_look_replaces_the_first():
    episode = episode_of({"kidney": (40, 50, 10)})
    rough = {"kidney": answer(np.stack([disc(42, 52, 8)] * len(SLICES)))}

    def second_look(closer: Episode) -> dict[str, Answer]:
        return {"kidney": answer(closer.query.image[SLICES] > 0.2)}

    masks = zoom().refine(episode, rough, second_look, main_part)["kidney"].masks
    truth = np.stack([disc(40, 50, 10)] * len(SLICES))
    assert (masks != truth).mean() < 2e-3
    assert zoom(passes=0).refine(episode, rough, second_look, main_part) is rough
    # the crop magnifies twice
    half = zoom(magnified=4.0).refine(episode, rough, second_look, main_part)["kidney"].logits
    np.testing.assert_allclose(half[:, 40, 50], 8, atol=0.1)
    assert abs(half[0, 33, 45]) < 1  # one look says yes, the other no


BODY = (slice(10, 70), slice(20, 90))  # rows and columns, of the support
TRUE = disc(44, 56, 4)  # in the query, whose body lies lower, and to the left


def in_bodies(labelled: np.ndarray) -> Episode:
    """An episode of one small organ, both of whose scans show a body around it."""
    support = np.zeros(SHAPE, np.float32)
    support[BODY] = 0.5
    query = np.roll(support, (4, -4), axis=(0, 1))
    episode = episode_of({"vessel": (40, 60, 4)})
    return replace(
        episode,
        support=replace(episode.support, image=np.stack([support] * 10)),
        query=replace(episode.query, image=np.stack([query] * 10)),
        organs={"vessel": replace(episode.organs["vessel"], support_masks=labelled[None])},
    )


@pytest.mark.parametrize(
    ("first", "then", "closer", "calls"),
    [
        (0.3, 0.6, True, 1),
        (0.3, 0.2, False, 1),  # what the model is surer of stays
        (0.7, 0.9, False, 0),  # it was not in doubt
    ],
)
def test_an_organ_in_doubt_is_looked_for_at_its_place_in_the_body(first, then, closer, calls):
    episode, asked = in_bodies(disc(40, 60, 4)), []

    def again(zoomed: Episode) -> dict[str, Answer]:
        asked.append(zoomed)
        support = zoomed.organs["vessel"].support_masks[0]
        middle = np.argwhere(support).mean(axis=0) + 0.5
        assert np.abs(middle - 32).max() < 2  # of a crop with 64 pixels a side
        return {"vessel": replace(answer(np.stack([support] * 6)), iou=np.full(6, then))}

    wrong = np.stack([disc(20, 30, 4)] * 6)
    before = replace(answer(wrong), iou=np.full(6, first))
    after = zoom().where_expected(episode, "vessel", before, again)
    assert len(asked) == calls
    if not closer:
        assert after is before
        return
    masks = after.logits > 0
    assert not masks[:, wrong[0]].any()  # nothing is left beyond the crop
    overlap = 2 * (masks & TRUE).sum((1, 2)) / (masks.sum((1, 2)) + TRUE.sum())
    assert (overlap > 0.9).all()


def test_a_crop_that_would_show_the_whole_slice_is_not_tried():
    episode = in_bodies(disc(40, 60, 12))
    before = replace(answer(np.stack([disc(40, 60, 12)] * 6)), iou=np.zeros(6))
    assert zoom().where_expected(episode, "vessel", before, None) is before  # 96 of 80 mm


def test_an_organ_found_nowhere_keeps_its_answer():
    episode = episode_of({"kidney": (40, 50, 10), "spleen": (20, 20, 8)})
    nothing = answer(np.zeros((len(SLICES), *SHAPE), bool))
    first = {"kidney": answer(found(episode)["kidney"]), "spleen": nothing}
    asked = []

    def second_look(closer: Episode) -> dict[str, Answer]:
        asked.extend(closer.organs)
        return {organ: answer(closer.query.image[SLICES] > 0.2) for organ in closer.organs}

    refined = zoom().refine(episode, first, second_look, main_part)
    assert asked == ["kidney"] and refined["spleen"] is nothing


def test_a_slice_gone_wrong_is_cut_where_its_neighbours_are():
    episode = episode_of({"kidney": (40, 50, 10)})
    masks = found(episode)
    masks["kidney"][1] = False
    masks["kidney"][3] = disc(10, 90, 9)
    cut = zoom().cut(episode, masks)
    np.testing.assert_allclose(cut.crops.centres, [[40, 50]] * len(SLICES), atol=0.5)


@pytest.mark.parametrize("share, groups", [(1.0, 3), (1.6, 2), (20.0, 1)])
def test_organs_share_crops_of_about_their_own_extent(share, groups):
    episode = episode_of({"wall": (40, 40, 15), "cavity": (40, 40, 10), "far": (20, 85, 6)})
    asked = []

    def second_look(closer: Episode) -> dict[str, Answer]:
        asked.append(list(closer.organs))
        return {organ: answer(closer.query.image[SLICES] > 0.2) for organ in closer.organs}

    first = {organ: answer(masks) for organ, masks in found(episode).items()}
    zoom(share=share).refine(episode, first, second_look, main_part)
    assert len(asked) == groups
    assert sorted(organ for group in asked for organ in group) == ["cavity", "far", "wall"]


@pytest.mark.parametrize("method", ["augment_match_prompt", "sam2_single", "sam2_volume"])
def test_what_zoom_encodes(method):
    """Once for every query slice and support slice or copy, in whole and in each group's crops."""
    episode = episode_of({"wall": (40, 40, 15), "far": (20, 85, 6)})
    counts = []
    for passes in (0, 1, 2):
        own = [f"method={method}", "method.scale.scales=[]"]
        built = build(*own, f"method.zoom.passes={passes}", "segmenter.image_size=64")
        built.zoom._groups = lambda *_: [["wall"], ["far"]]  # however little random weights find
        built.zoom.cut = lambda e, f: zoom().cut(e, found(episode_of_organs(episode, f)))
        masks = built.segment(episode)
        assert {organ: mask.shape for organ, mask in masks.items()} == {
            "wall": (6, *SHAPE),
            "far": (6, *SHAPE),
        }
        counts.append(built.segmenter.images_encoded)
    whole = counts[0]
    assert whole == len(SLICES) + (6 if method == "augment_match_prompt" else 1)
    assert counts == [whole, 3 * whole, 5 * whole]


def episode_of_organs(episode: Episode, organs) -> Episode:
    return replace(episode, organs={organ: episode.organs[organ] for organ in organs})


@pytest.mark.parametrize(
    "change",
    [
        {"passes": -1},
        {"factor": 0.5},
        {"share": 0.9},
        {"magnified": -1},
        {"size": 8},
        {"wide": 1},
        {"doubt": 2},
    ],
)
def test_bad_settings_are_refused(change):
    with pytest.raises(UserError, match=r"method\.zoom\."):
        zoom(**change)
