"""The support brought to the query's scale: what is tried, what is taken, what it costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.pipeline import alignment
from fsmis.pipeline.alignment import ScaleSearch, scaled
from fsmis.pipeline.prompting import EncodedEpisode
from fsmis.segmenters import Answer
from fsmis.segmenters.features import Features
from tests.methods.test_augment_match_prompt import build
from tests.pipeline.test_zoom import SHAPE, SLICES, disc, episode_of


@pytest.fixture
def episode() -> Episode:
    return episode_of({"kidney": (45, 60, 10)})


def test_scaled_support_slices_keep_their_middle(episode):
    larger = scaled(episode, 1.5)
    expected = disc(40 + 1.5 * 5, 50 + 1.5 * 10, 15)
    mask = larger.organs["kidney"].support_masks[0]
    assert (mask != expected).mean() < 5e-3
    assert ((larger.support.image[4] > 0.2) != expected).mean() < 5e-3
    assert larger.query is episode.query and larger.support.id != episode.support.id
    assert scaled(episode, 1.0) is episode


def test_all_slices_are_scaled_as_they_tell_the_place_along_the_body(episode):
    whole = episode.support.image.copy()
    whole[:] = episode.support.image[4]
    larger = scaled(replace(episode, support=replace(episode.support, image=whole)), 1.5)
    assert all(np.array_equal(image, larger.support.image[4]) for image in larger.support.image)


def test_the_labelled_slices_alone_are_the_same_slices(episode):
    alone = episode.labelled_alone()
    assert len(alone.support.image) == len(episode.support_slices)
    for organ, task in alone.organs.items():
        before = episode.organs[organ]
        assert np.array_equal(
            alone.support.image[task.support_slices], episode.support.image[before.support_slices]
        )
        assert task.support_masks is before.support_masks


def test_a_thin_organ_survives_a_smaller_scale(episode):
    line = np.zeros((1, *SHAPE), bool)
    line[0, 40, 30:60] = True
    task = replace(episode.organs["kidney"], support_masks=line)
    assert (
        scaled(replace(episode, organs={"kidney": task}), 0.3).organs["kidney"].support_masks.any()
    )


@pytest.mark.parametrize(
    "overlap, taken",
    [({1.0: 0.5, 0.7: 0.6, 1.4: 0.8}, 1.4), ({1.0: 0.5, 0.7: 0.52, 1.4: 0.58}, 1.0)],
)
def test_the_surest_scale_wins_by_a_margin(episode, monkeypatch, overlap, taken):
    """The share of the support's image that the organ covers tells the scale that is tried."""
    area = episode.organs["kidney"].support_masks.mean()

    class Blind:
        def encode(self, images: np.ndarray) -> Features:
            return Features([torch.zeros(len(images), 1, 1, 1)])

    def answer(_, few: Episode, encoded: EncodedEpisode) -> dict[str, Answer]:
        assert len(encoded.supports.levels[0]) == 1 and len(encoded.queries.levels[0]) == 3
        task = few.organs["kidney"]
        assert set(task.query_slices) < set(SLICES) and len(task.query_slices) == 3
        scale = min(overlap, key=lambda s: abs(s * s * area - task.support_masks.mean()))
        rows = np.ones(3, np.float32)
        logits = np.full((3, *SHAPE), 9, np.float32)  # as sure of every mask
        return {"kidney": Answer(logits, rows, overlap[scale] * rows)}

    monkeypatch.setattr(alignment, "single_support", answer)
    search = ScaleSearch([0.7, 1.4], slices=3, margin=0.05)
    result = search.search(Blind(), episode)
    assert search.found == taken
    expected = scaled(episode, taken)
    np.testing.assert_array_equal(
        result.organs["kidney"].support_masks, expected.organs["kidney"].support_masks
    )
    np.testing.assert_array_equal(result.organs["kidney"].query_slices, SLICES)


def test_a_scale_that_pushes_an_organ_off_the_slice_is_not_tried(monkeypatch):
    episode, tried = episode_of({"kidney": (40, 92, 6), "liver": (40, 50, 20)}), []

    class Blind:
        def encode(self, images: np.ndarray) -> Features:
            return Features([torch.zeros(len(images), 1, 1, 1)])

    def answer(_, few: Episode, encoded: EncodedEpisode) -> dict[str, Answer]:
        tried.append(few.support.id)
        shape = (3, *SHAPE)
        return {o: Answer(np.ones(shape), np.ones(3), np.ones(3)) for o in few.organs}

    monkeypatch.setattr(alignment, "single_support", answer)
    ScaleSearch([0.7, 1.2, 2.0], slices=3, margin=0.1).search(Blind(), episode)
    assert tried == ["1", "1 x0.7"]  # at 1.2, the kidney's middle lies on the edge


def test_what_the_search_encodes(episode):
    """The few query slices once, and every support slice at every scale."""
    counts = []
    for scales in ("[]", "[0.7,1.4]"):
        method = build("matcher=identity", f"method.scale.scales={scales}", "method.scale.slices=2")
        method.segment(episode)
        counts.append(method.segmenter.images_encoded)
    assert counts[1] - counts[0] == 2 + 3 * 1


@pytest.mark.parametrize("change", [{"scales": [0]}, {"slices": 0}, {"margin": -1}])
def test_bad_settings_are_refused(change):
    with pytest.raises(UserError, match=r"method\.scale\."):
        ScaleSearch(**{"scales": [], "slices": 4, "margin": 0.05} | change)


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.4, 2.0])
def test_white_stays_white_at_every_scale(episode, scale):
    """Weights of an interpolation add up to a little more than 1 now and then."""
    white = replace(episode.support, image=np.ones_like(episode.support.image))
    image = scaled(replace(episode, support=white), scale).support.image
    assert image.max() == 1 and image.min() > 0.999


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.4])
@pytest.mark.parametrize("whole_volume", [False, True])
def test_every_later_stage_takes_a_scaled_support(episode, scale, whole_volume, monkeypatch):
    scores = iter([0.0, 1.0])
    monkeypatch.setattr(alignment, "_score", lambda *_: next(scores))
    white = replace(episode.support, image=np.ones_like(episode.support.image))
    asked = replace(episode, support=white, whole_volume=whole_volume)
    method = build("method=augment_match_prompt", f"method.scale.scales=[{scale}]")
    found = method.segment(asked)["kidney"]
    assert method.scale.found == scale
    assert found.shape == (len(episode.organs["kidney"].query_slices), *SHAPE)
