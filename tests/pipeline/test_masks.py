"""Masks in one piece, without leaks, none over another, their borders on the edges of the image."""

# ruff: noqa: F811 (episode is a fixture)
from dataclasses import replace

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from fsmis.data.protocol import Episode
from fsmis.methods.prompted import apart
from fsmis.pipeline.masks import Borders, Greys, evened, largest_component, without_leaks
from fsmis.pipeline.prompting import VolumePass
from fsmis.pipeline.zoom import Zoom
from fsmis.segmenters import Answer
from tests.methods.test_augment_match_prompt import build, episode  # noqa: F401
from tests.pipeline.test_test_time import certain


def test_largest_component_of_a_volume():
    mask = np.zeros((4, 8, 8), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True  # touch by corners, across slices
    mask[2:, 5, 5] = True  # two voxels apart from them
    kept = mask.copy()
    kept[2:, 5, 5] = False
    np.testing.assert_array_equal(largest_component(mask), kept)
    np.testing.assert_array_equal(largest_component(kept), kept)
    assert not largest_component(np.zeros_like(mask)).any()
    assert largest_component(mask[:0]).shape == (0, 8, 8)  # an organ ruled out of every slice


def test_largest_component_of_every_organ(episode, monkeypatch):
    noise = np.random.default_rng(0).normal(-0.8, 1, (9, 96, 96))  # in many parts
    monkeypatch.setattr(VolumePass, "refine", lambda *_: certain(noise))
    off, on = (
        build("matcher=ncc", f"method.largest_component={kept}", "method.narrowest=0")
        for kept in ("false", "true")
    )
    all_parts, one_part = off.segment(episode), on.segment(episode)
    for organ, mask in all_parts.items():
        np.testing.assert_array_equal(one_part[organ], largest_component(mask))
        assert 0 < one_part[organ].sum() < mask.sum()


def disc(radius: float, y: float = 32, x: float = 32) -> np.ndarray:
    rows, columns = np.mgrid[:64, :64]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def test_what_a_narrow_passage_joins_to_an_organ_is_cut_off():
    organ = np.stack([disc(radius) for radius in (3, 8, 14, 15, 12, 7, 2)])
    leaking = organ.copy()
    leaking[3, 31:34, 47:58] = True  # three pixels wide
    leaking[3:5, 20:44, 56:62] = True
    sure = np.ones(7)
    kept = without_leaks(leaking, sure, organ[3:4], 0.25)
    assert kept[:, :, :46].sum() == organ[:, :, :46].sum()  # its thin ends too
    assert not kept[:, :, 54:].any()
    np.testing.assert_array_equal(without_leaks(leaking, sure, organ[3:4], 0), leaking)
    np.testing.assert_array_equal(without_leaks(organ, sure, organ[3:4], 0.25), organ)
    wide = leaking.copy()
    wide[3, 22:43, 40:62] = True
    assert without_leaks(wide, sure, organ[3:4], 0.25)[3, 32, 40:62].all()


def test_a_labelled_organ_that_narrows_itself_is_not_cut():
    two = disc(10, y=16) | disc(10, y=48) | (np.abs(np.arange(64) - 32) <= 1) & disc(20)
    masks, sure = np.stack([two] * 3), np.ones(3)
    assert largest_component(masks).sum() == masks.sum()
    assert without_leaks(masks, sure, disc(12)[None], 0.4).sum() < 0.7 * masks.sum()
    np.testing.assert_array_equal(without_leaks(masks, sure, two[None], 0.4), masks)


@given(st.integers(0, 99), st.floats(0, 0.9), st.floats(-1, 1))
def test_cutting_adds_nothing_and_leaves_something(seed, narrowest, level):
    field = np.random.default_rng(seed).normal(size=(4, 6, 6)).repeat(4, 1).repeat(4, 2)
    masks, sure = field > level, np.ones(4)
    kept = without_leaks(masks, sure, masks[:2], narrowest)
    assert not (kept & ~masks).any() and kept.any() == masks.any()
    np.testing.assert_array_equal(
        without_leaks(masks, sure, masks[:2], 0), largest_component(masks)
    )


def test_leaks_steer_no_crop_and_are_no_part_of_the_answer(episode, monkeypatch):
    leaking = np.full((9, 96, 96), -1.0, np.float32)
    leaking[:, 10:50, 10:50] = leaking[:, 29:31, 50:70] = leaking[:, 20:40, 70:80] = 1
    monkeypatch.setattr(VolumePass, "refine", lambda *_: certain(leaking))
    given = []

    def refine(self, episode, answers, ask, part):
        given.extend(part(episode.organs[organ], answer) for organ, answer in answers.items())
        return ask(episode)

    monkeypatch.setattr(Zoom, "refine", refine)
    method = build("matcher=ncc", "method.largest_component=true", "method.narrowest=0.25")
    masks = method.segment(episode)
    for before, after in zip(given, masks.values(), strict=True):
        for mask in (before, after):
            assert mask[:, 10:50, 10:50].mean() > 0.97 and not mask[:, :, 60:].any()
    unsure = without_leaks(leaking > 0, np.zeros(9), leaking[:1] > 0, 0.25)
    assert unsure[:, 10:50, 10:50].any()  # a model that believes nothing
    none = without_leaks(leaking[:0] > 0, np.ones(0), leaking[:1] > 0, 0.25)
    assert none.shape == (0, 96, 96)


def test_of_two_wide_parts_the_one_that_the_model_believes_is_kept():
    rim = disc(12, x=20) & (np.arange(64) > 28)  # it joins the parts
    masks = np.stack([disc(12, x=20), disc(12, x=20), rim | disc(10, x=44), disc(11, x=44)])
    assert largest_component(masks).sum() == masks.sum()
    for sure, column in (([0.9, 0.9, 0.3, 0.3], 20), ([0.3, 0.3, 0.9, 0.9], 44)):
        kept = without_leaks(masks, np.array(sure), disc(12)[None], 0.4)
        assert kept[:, 32, column].any() and not kept[:, 32, 64 - column].any()


@pytest.mark.parametrize("narrowest", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(narrowest):
    with pytest.raises(InstantiationException, match=r"method\.narrowest="):
        build(f"method.narrowest={narrowest}")


@pytest.mark.parametrize("by_presence", [False, True])
def test_of_a_pixel_that_several_organs_claim_one_keeps_it(episode, by_presence):
    noise = np.random.default_rng(1)
    answers = {}
    for organ, task in episode.organs.items():
        count = len(task.query_slices)
        logits = noise.normal(0, 3, (count, 96, 96)).astype(np.float32)
        score, overlap = noise.normal(1, 1, count), noise.uniform(0, 1, count)
        answers[organ] = Answer(logits, score.astype(np.float32), overlap.astype(np.float32))
    settled = apart(episode, answers, by_presence)
    kept = {organ: answer.masks for organ, answer in settled.items()}
    held = np.zeros(episode.query.image.shape, int)
    claimed = np.zeros(episode.query.image.shape, bool)
    for organ, task in episode.organs.items():
        assert not (kept[organ] & ~answers[organ].masks).any()
        held[task.query_slices] += kept[organ]
        claimed[task.query_slices] |= answers[organ].masks
    np.testing.assert_array_equal(held, claimed)  # each claimed pixel goes to one organ
    for organ, answer in apart(episode, settled, by_presence).items():
        assert answer.logits.dtype == np.float32
        np.testing.assert_array_equal(answer.logits, settled[organ].logits)
    alone = dict(list(answers.items())[:1])
    for organ, answer in apart(episode, alone, by_presence).items():
        np.testing.assert_array_equal(answer.logits, answers[organ].logits)


@pytest.mark.parametrize("surer", ["object_score", "iou"])
def test_the_organ_that_the_model_is_surer_of_keeps_the_pixels(episode, surer):
    organs = list(episode.organs)[:2]
    slices = np.intersect1d(*(episode.organs[organ].query_slices for organ in organs))
    tasks = episode.organs.items()
    few = episode.asking({o: np.flatnonzero(np.isin(t.query_slices, slices)) for o, t in tasks})
    logits = np.ones((len(slices), 96, 96), np.float32)
    half = np.full(len(slices), 0.5, np.float32)
    answers = {organ: Answer(logits, half, half) for organ in organs}
    answers[organs[1]] = replace(answers[organs[1]], **{surer: half + 0.1})
    settled = apart(few, answers, by_presence=True)
    assert not settled[organs[0]].masks.any() and settled[organs[1]].masks.all()


def showing(episode: Episode, image: np.ndarray, organs: list[str]) -> Episode:
    """The episode of some organs, every slice of its query the same, ``[H, W]``."""
    query = replace(episode.query, image=np.stack([image] * len(episode.query.image)))
    return replace(episode, query=query, organs={o: episode.organs[o] for o in organs})


def noisy(image: np.ndarray) -> np.ndarray:
    return (image + np.random.default_rng(0).normal(0, 0.02, image.shape)).clip(0, 1)


def overlap(mask: np.ndarray, other: np.ndarray) -> float:
    return 2 * (mask & other).sum() / (mask.sum() + other.sum())


def test_a_border_beside_an_edge_is_drawn_on_it(episode):
    organ = next(iter(episode.organs))
    true, drawn = disc(12), disc(11, y=33, x=32.5)
    shown = showing(episode, noisy(np.where(true, 0.7, 0.3)), [organ])
    masks = {organ: np.stack([drawn] * len(episode.organs[organ].query_slices))}
    masks[organ][1] = False
    redrawn = Borders(2.5, 1, 130).redraw(shown, masks, together=True)[organ]
    assert overlap(drawn, true) < 0.92
    assert overlap(redrawn[0], true) > 0.98
    assert not redrawn[1].any()
    np.testing.assert_array_equal(masks[organ][0], drawn)  # what was given stays as it was
    assert Borders(0, 1, 130).redraw(shown, masks, together=True) is masks


def test_organs_that_touch_share_one_border(episode):
    wall, core = list(episode.organs)[:2]
    inner, outer = disc(8), disc(13)
    shown = showing(episode, noisy(np.select([inner, outer], [0.8, 0.2], 0.5)), [wall, core])
    drawn = {wall: disc(13, x=33) & ~disc(9.5), core: disc(7)}  # what lies between is nobody's
    masks = {o: np.stack([m] * len(episode.organs[o].query_slices)) for o, m in drawn.items()}
    redrawn = Borders(2.5, 1, 130).redraw(shown, masks, together=True)
    z = np.intersect1d(*(episode.organs[organ].query_slices for organ in drawn))[0]
    rows = {o: int(np.flatnonzero(episode.organs[o].query_slices == z)[0]) for o in drawn}
    found = {organ: redrawn[organ][rows[organ]] for organ in drawn}
    assert overlap(found[core], inner) > 0.99 and overlap(found[wall], outer & ~inner) > 0.94
    assert not (found[core] & found[wall]).any()
    assert overlap(drawn[wall], outer & ~inner) < 0.85


@given(seed=st.integers(0, 99), width=st.floats(0.5, 4), beta=st.floats(1, 1000))
def test_what_is_far_from_a_border_stays(episode, seed, width, beta):
    random = np.random.default_rng(seed)
    organs = list(episode.organs)[:2]
    shown = showing(episode, random.random((24, 24)), organs)
    owner = random.integers(0, 4, (6, 6)).repeat(4, 0).repeat(4, 1)
    masks = {
        organ: np.stack([owner == number] * len(episode.organs[organ].query_slices))
        for number, organ in enumerate(organs)
    }
    redrawn = Borders(width * 1.25, 1, beta).redraw(shown, masks, together=True)
    borders = [
        distance_transform_edt(part)
        for number in (0, 1)
        for part in (owner == number, owner != number)
    ]
    far = np.all([(part == 0) | (part > width) for part in borders], axis=0)
    slices = [episode.organs[organ].query_slices for organ in organs]
    both = np.intersect1d(*slices)
    for organ, of_organ in zip(organs, slices, strict=True):
        rows = np.isin(of_organ, both)
        before, after = masks[organ][rows], redrawn[organ][rows]
        np.testing.assert_array_equal(after[:, far], before[:, far])
        assert (after.any(axis=(1, 2)) == before.any(axis=(1, 2))).all()


@pytest.mark.parametrize(
    ("image", "mask"),
    [(np.full((64, 64), 0.5), disc(9)), (noisy(disc(9) * 0.5), disc(99)), (disc(9), disc(0))],
    ids=["no edge anywhere", "the whole slice", "a single pixel"],
)
def test_a_mask_without_an_edge_stays(episode, image, mask):
    organ = next(iter(episode.organs))
    masks = {organ: np.stack([mask] * len(episode.organs[organ].query_slices))}
    kept = Borders(2.5, 1, 130).redraw(showing(episode, image, [organ]), masks, together=False)
    np.testing.assert_array_equal(kept[organ], masks[organ])


def test_the_method_redraws_its_last_masks(episode):
    kept, redrawn = (
        build("matcher=ncc", f"method.borders.width={width}").segment(episode) for width in (0, 2.5)
    )
    assert any((kept[organ] != redrawn[organ]).any() for organ in kept)
    expected = Borders(2.5, 0.05, 130).redraw(episode, kept, together=False)
    for organ, mask in redrawn.items():
        np.testing.assert_array_equal(mask, expected[organ])


@pytest.mark.parametrize("setting", ["width=-1", "share=0", "beta=0"])
def test_settings_of_borders_out_of_range_are_refused(setting):
    with pytest.raises(InstantiationException, match=r"method\.borders\.width="):
        build(f"method.borders.{setting}")


def whole(episode: Episode) -> Episode:
    """The episode that asks for every slice of the query, the first label serving all of them."""
    every = np.arange(len(episode.query.image))
    tasks = {
        organ: replace(task, query_slices=every, part=np.zeros(len(every), int))
        for organ, task in episode.organs.items()
    }
    return replace(episode, organs=tasks, whole_volume=True)


def turning(episode: Episode, gains: np.ndarray) -> tuple[Episode, str, np.ndarray, Answer]:
    """One organ whose mask goes on, in its last three slices, into a darker neighbour; slices are
    as many times as bright as ``gains`` say."""
    episode = whole(episode)
    organ = next(iter(episode.organs))
    rows = episode.organs[organ].query_slices
    image = np.full(episode.query.image.shape, 0.3)
    masks = np.stack([disc(12)] * len(rows))
    grey = np.where(rows < len(rows) - 3, 0.6, 0.4)[:, None, None]
    image[:, :64, :64] = np.where(masks, grey, 0.3)
    noise = np.random.default_rng(0).normal(0, 0.01, image.shape)
    query = replace(episode.query, image=(image + noise) * gains[:, None, None])
    shown = replace(episode, query=query, organs={organ: episode.organs[organ]})
    masks = np.pad(masks, ((0, 0), (0, 32), (0, 32)))
    found = certain(np.where(masks, 5, -5).astype(np.float32))
    iou = np.where(rows < len(rows) - 3, 0.9, 0.8)
    return shown, organ, masks, replace(found, iou=iou.astype(np.float32))


@pytest.mark.parametrize("brightness", ["even", "uneven"])
def test_an_organ_ends_where_its_masks_turn_darker(episode, brightness):
    gains = np.ones(8) if brightness == "even" else np.array([1, 0.6, 1, 0.5, 0.9, 0.6, 1, 0.7])
    shown, organ, masks, answer = turning(episode, gains)
    cut = Greys(4, 0.01).cut(shown, {organ: masks}, {organ: answer})[organ]
    kept = len(masks) - 3
    np.testing.assert_array_equal(cut[:kept], masks[:kept])
    assert not cut[kept:].any() and masks[kept:].any()
    all_the_same = Greys(0, 0.01).cut(shown, {organ: masks}, {organ: answer})
    assert all_the_same[organ] is masks
    apart_from_it = masks.copy()
    apart_from_it[2] = False  # all parts stay, as of lesions
    cut = Greys(4, 0.01).cut(shown, {organ: apart_from_it}, {organ: answer})[organ]
    np.testing.assert_array_equal(cut[:kept], apart_from_it[:kept])
    loose = Greys(4, 0.1).cut(shown, {organ: masks}, {organ: answer})[organ]
    np.testing.assert_array_equal(loose, masks)


def test_evened_slices_are_as_bright_as_each_other(episode):
    gains = np.linspace(0.5, 1, 8)
    shown, *_ = turning(episode, gains)
    corner = evened(shown.query.image)[:, 80:, 80:].mean(axis=(1, 2))
    assert corner.max() / corner.min() < 1.02 < gains.max() / gains.min()
    dark = np.zeros((3, 8, 8))
    np.testing.assert_array_equal(evened(dark), dark)  # air alone tells nothing


def test_an_organ_found_nowhere_or_in_one_slice_has_its_grey_value(episode):
    shown, organ, masks, answer = turning(episode, np.ones(8))
    for rows in ([], [2]):
        few = np.zeros_like(masks)
        few[rows] = masks[rows]
        cut = Greys(4, 0.01).cut(shown, {organ: few}, {organ: answer})[organ]
        np.testing.assert_array_equal(cut, few)


def test_grey_values_are_compared_in_whole_volumes_alone(episode, monkeypatch):
    asked = []
    monkeypatch.setattr(
        Greys, "cut", lambda self, _episode, masks, _answers: asked.append(1) or masks
    )
    build("matcher=ncc", "extent@method.extent=default").segment(episode)
    assert not asked
    build("matcher=ncc").segment(whole(episode))
    assert asked


@pytest.mark.parametrize("setting", ["deviations=-1", "least=0"])
def test_settings_of_greys_out_of_range_are_refused(setting):
    with pytest.raises(InstantiationException, match=r"method\.greys\.deviations="):
        build(f"method.greys.{setting}")
