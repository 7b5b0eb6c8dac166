"""Options at test time: each alone from its switch, all of them off by default."""

# ruff: noqa: F401, F811 (episode is a fixture)
from dataclasses import replace

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fsmis.cli import CONF_DIR
from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.pipeline.prompting import Prompts, VolumePass, mirror, segment_prompted
from fsmis.pipeline.zoom import Zoom
from fsmis.segmenters import Answer
from tests.methods.test_augment_match_prompt import build, episode

VOLUME_PASS = ["method.volume_pass.reach=1", "method.volume_pass.confidence=0"]


def certain(logits: np.ndarray) -> Answer:
    """An answer of rows that all show the object."""
    return Answer(logits, np.ones(len(logits), np.float32), np.ones(len(logits), np.float32))


def mirrored(episode: Episode) -> Episode:
    tasks = {
        organ: replace(task, support_masks=mirror(task.support_masks))
        for organ, task in episode.organs.items()
    }
    support, query = (replace(s, image=mirror(s.image)) for s in (episode.support, episode.query))
    return replace(episode, support=support, query=query, organs=tasks)


def differing(masks: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> float:
    """Largest fraction of an organ's pixels in which two answers differ."""
    return max((masks[organ] != others[organ]).mean() for organ in masks)


def test_all_off_is_the_plain_method(episode):
    method = build("matcher=identity", "support_set.kind=none")
    masks = method.segment(episode)
    tasks, segmenter = episode.organs.values(), method.segmenter
    support_z = np.concatenate([t.support_slices[t.part] for t in tasks])
    query_z = np.concatenate([t.query_slices for t in tasks])
    prompts = np.concatenate([t.support_masks[t.part] for t in tasks])
    memory = segmenter.memorise(segmenter.encode(episode.support.image[support_z]), prompts)
    queries = segmenter.encode(episode.query.image[query_z])
    plain = segmenter.segment(queries, [memory], (96, 96)).masks
    np.testing.assert_array_equal(np.concatenate(list(masks.values())), plain)
    assert plain.any() and not plain.all()


@pytest.mark.parametrize("more", [[], VOLUME_PASS], ids=["alone", "with volume pass"])
def test_flip_is_equivariant(episode, more):
    """A mirrored episode has mirrored masks, up to rounding of resized pixels: 1 in 1000."""
    setting = ["matcher=ncc", "support_set.kind=jitter", *more]
    answers = {}
    for flip in (False, True):
        method = build(*setting, f"method.flip={flip}")
        masks, turned = method.segment(episode), method.segment(mirrored(episode))
        answers[flip] = masks, {organ: mirror(mask) for organ, mask in turned.items()}
    assert differing(*answers[True]) <= 1e-3 < differing(*answers[False])
    assert all(mask.any() and not mask.all() for mask in answers[True][0].values())


def test_flip_encodes_queries_and_matched_copies_once_more(episode):
    counts = {}
    for flip in (False, True):
        method = build("matcher=encoder_features", f"method.flip={flip}")
        method.segment(episode)
        distinct = {m.image.tobytes() for matches in method.matches.values() for m in matches}
        counts[flip] = method.segmenter.images_encoded
    assert counts[True] - counts[False] == 6 + len(distinct)


def test_rows_may_have_fewer_memories(episode):
    segmenter = build("matcher=identity").segmenter
    images = segmenter.encode(episode.query.image[:3])
    masks = episode.organs["liver"].support_masks.copy()
    masks[1, :, :35] = False
    rows = np.array([[-1, 0], [0, 1], [1, -1], [1, 0]])
    prompts = Prompts(np.array([0, 1]), masks, np.full(4, 2), rows)
    together = segment_prompted(segmenter, images, images, prompts).gated
    for row, logits in zip(rows, together, strict=True):
        one = replace(prompts, row_query=np.array([2]), row_memory=row[row >= 0][np.newaxis])
        alone = segment_prompted(segmenter, images, images, one).gated[0]
        np.testing.assert_allclose(logits, alone, atol=1e-4)
    assert all(np.abs(together[0] - other).max() > 1e-2 for other in together[1:])


@pytest.mark.parametrize("flip", [False, True])
def test_volume_pass_adds_no_encoder_pass(episode, flip):
    once = build("matcher=ncc", f"method.flip={flip}")
    twice = build("matcher=ncc", f"method.flip={flip}", *VOLUME_PASS)
    assert differing(once.segment(episode), twice.segment(episode)) > 0
    assert once.segmenter.images_encoded == twice.segmenter.images_encoded


def test_volume_pass_without_confident_slices_changes_nothing(episode):
    once = build("matcher=ncc")
    twice = build("matcher=ncc", VOLUME_PASS[0], "method.volume_pass.confidence=0.999999")
    assert differing(once.segment(episode), twice.segment(episode)) == 0


def test_volume_pass_keeps_organs_apart(episode):
    method = build("matcher=ncc", "support_set.kind=jitter", *VOLUME_PASS)
    together = method.segment(episode)
    alone = method.segment(replace(episode, organs={"spleen": episode.organs["spleen"]}))
    np.testing.assert_array_equal(alone["spleen"], together["spleen"])


def test_confidence_is_the_mean_probability_of_the_foreground():
    logits = np.full((4, 4, 4), -9.0, np.float32)
    logits[0, 0] = 3.0  # probability 0.953
    logits[1, 0] = [3.0, 3.0, 0.5, 0.5]  # 0.788 on average
    logits[2, 0] = -0.1
    logits[3, 0, 0] = 3.0
    there = certain(logits)
    assert VolumePass(1, 0.9).confident(there).tolist() == [True, False, False, True]
    assert VolumePass(1, 0.7).confident(there).tolist() == [True, True, False, True]
    assert VolumePass(1, 0.0).confident(there).tolist() == [True, True, False, True]
    absent = replace(there, object_score=np.array([1, 1, 1, -1], np.float32))
    assert VolumePass(1, 0.0).confident(absent).tolist() == [True, True, False, False]


@given(
    st.lists(
        st.tuples(st.sampled_from(["liver", "spleen"]), st.integers(0, 9)),
        unique=True,
        min_size=1,
    ),
    st.sets(st.integers(0, 19)),
    st.integers(1, 3),
)
def test_memories_are_the_confident_neighbours_the_nearest_last(slices, known, reach):
    n = len(slices)
    known = {row for row in known if row < n}
    logits = np.full((n, 2, 2), -5.0)
    for row in range(n):
        logits[row, 0, row % 2] = 5.0 if row in known else 0.5
    first = Prompts(
        memory_copy=np.array([0, 1]),
        memory_mask=np.ones((2, 2, 2), bool),
        row_query=2 + np.arange(n),
        row_memory=np.arange(2 * n).reshape(n, 2) % 2,
    )
    rows, second = VolumePass(reach, 0.9).prompts(certain(logits), slices, first)

    of_row = dict(zip(rows, range(len(rows)), strict=True))
    for row, (organ, z) in enumerate(slices):
        near = [
            other
            for other in known
            if slices[other][0] == organ and 0 < abs(slices[other][1] - z) <= reach
        ]
        assert (row in of_row) == bool(near)
        if near:
            memories = second.row_memory[of_row[row]]
            memories = memories[memories >= 0]
            assert memories[:2].tolist() == first.row_memory[row].tolist()
            added = second.memory_copy[memories[2:]] - 2
            assert sorted(added) == sorted(near)
            away = [abs(slices[other][1] - z) for other in added]
            assert away == sorted(away, reverse=True)
            np.testing.assert_array_equal(
                second.predicted_mask[memories[2:] - 2], logits[added] > 0
            )
            assert second.row_query[of_row[row]] == first.row_query[row]


@pytest.mark.parametrize("reach, confidence", [(-1, 0.9), (1.5, 0.9), (1, 1.0), (1, -0.1)])
def test_bad_volume_pass_is_refused(reach, confidence):
    with pytest.raises(UserError, match=r"method\.volume_pass\."):
        VolumePass(reach, confidence)


def test_ablation_switches_what_it_names():
    def method(choice: str) -> dict[str, object]:
        cfg = compose("config", ["experiment=ablation_test_time", f"test_time={choice}"])
        return OmegaConf.to_container(cfg.method, resolve=True)

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        sweeper = compose("config", ["experiment=ablation_test_time"], return_hydra_config=True)
        choices = sweeper.hydra.sweeper.params.test_time.split(",")
        plain = method("none")
        switched = {
            choice: {key for key, value in method(choice).items() if value != plain[key]}
            for choice in choices
        }
    assert switched.pop("none") == set()
    assert switched.pop("memories_and_volume_pass") == {"memories", "volume_pass"}
    default = switched.pop("default")
    assert default == {
        "memories",
        "volume_pass",
        "largest_component",
        "narrowest",
        "non_overlap",
        "zoom",
        "scale",
        "extent",
        "borders",
    }
    assert switched.pop("default_without_zoom") == default - {"zoom"}
    assert switched.pop("default_with_leaks") == default - {"narrowest"}
    assert switched.pop("default_without_borders") == default - {"borders"}
    assert switched.pop("default_and_flip") == default | {"flip"}
    assert switched.pop("default_and_second_zoom") == default
    assert switched == {choice: {choice} for choice in switched}
