"""The paper's method end to end: what is shared, what is counted, what it depends on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fsmis.data.dataset import Scan
from fsmis.data.protocol import Episode, OrganTask
from fsmis.methods.augment_match_prompt import AugmentMatchPrompt
from fsmis.tools.bench.ways import make_responsive

CONF = Path(__file__).parents[2] / "conf"


def build(*overrides: str) -> AugmentMatchPrompt:
    """The method of a composed configuration, small and with lively random weights."""
    small = ["segmenter.checkpoint=random", "segmenter.image_size=64", "support_set.count=6"]
    quiet = ["device=cpu", "cache.dir=null"]
    small += ["method.largest_component=false", "method.non_overlap=false"]
    if not any(override.startswith("method=") for override in overrides):
        small += ["method.memories=1", "method.volume_pass.reach=0", "method.zoom.passes=0"]
        small += ["method.scale.scales=[]", "method.borders.width=0"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[*small, *quiet, *overrides])
    method = instantiate(config.method)
    make_responsive(method.segmenter.model, seed=3)
    return method


def scan(name: str, seed: int) -> Scan:
    rng = np.random.default_rng(seed)
    image = rng.random((8, 12, 12), dtype=np.float32).repeat(8, 1).repeat(8, 2)
    return Scan(name, image, None, (7.7, 1.25, 1.25), np.eye(4))


@pytest.fixture(scope="module")
def episode() -> Episode:
    """Two organs; they share support slice 3 and the query slices 2 to 4."""
    masks = np.zeros((2, 2, 96, 96), bool)
    masks[0, :, 20:50, 20:50] = masks[1, :, 50:80, 40:80] = True
    tasks = {
        "liver": OrganTask(
            "liver", np.array([1, 3]), masks[0], np.arange(1, 5), np.array([0, 0, 1, 1])
        ),
        "spleen": OrganTask(
            "spleen", np.array([3, 5]), masks[1], np.arange(2, 7), np.array([0, 0, 0, 1, 1])
        ),
    }
    return Episode("phantom", 0, scan("1", 1), scan("2", 2), tasks)


@pytest.mark.parametrize("matcher", ["ssim", "ncc", "psnr", "random", "identity"])
def test_each_image_is_encoded_once(episode, matcher):
    method = build(f"matcher={matcher}")
    method.segment(episode)
    distinct = {match.image.tobytes() for matches in method.matches.values() for match in matches}
    query_slices = 6
    assert method.segmenter.images_encoded == query_slices + len(distinct)


def test_encoder_features_cost_one_pass_an_image(episode):
    method = build("matcher=encoder_features")
    method.segment(episode)
    assert method.segmenter.images_encoded == 6 + 3 * 6  # query slices + support slices x copies


def test_masks_have_the_shape_of_the_task(episode):
    masks = build("matcher=ncc").segment(episode)
    assert {organ: mask.shape for organ, mask in masks.items()} == {
        "liver": (4, 96, 96),
        "spleen": (5, 96, 96),
    }
    assert all(mask.dtype == bool for mask in masks.values())


@pytest.mark.parametrize("memories", [1, 3])
def test_organs_do_not_influence_each_other(episode, memories):
    method = build("matcher=ncc", f"method.memories={memories}", "support_set.kind=jitter")
    together = method.segment(episode)
    alone = method.segment(replace(episode, organs={"spleen": episode.organs["spleen"]}))
    backwards = method.segment(replace(episode, organs=dict(reversed(episode.organs.items()))))
    for organ, mask in backwards.items():
        np.testing.assert_array_equal(mask, together[organ])
    np.testing.assert_array_equal(alone["spleen"], together["spleen"])


def test_an_episode_leaves_nothing_for_the_next(episode):
    method = build("matcher=encoder_features")
    first = method.segment(episode)
    method.segment(replace(episode, query=scan("3", 7)))
    again = method.segment(episode)
    for organ in first:
        np.testing.assert_array_equal(first[organ], again[organ])


def test_matches_are_copies_of_the_part_that_serves(episode):
    method = build("matcher=identity", "support_set.kind=none")
    method.segment(episode)
    served = episode.organs["liver"].support_slices[episode.organs["liver"].part]
    for match, z in zip(method.matches["liver"], served, strict=True):
        np.testing.assert_array_equal(match.image, episode.support.image[z])
        np.testing.assert_array_equal(match.mask, episode.organs["liver"].support_masks[0])


@pytest.mark.parametrize(("memories", "count", "of"), [(1, 4, 1), (3, 4, 3), (3, 2, 2)])
def test_matches_say_how_many_copies_prompted_together(episode, memories, count, of):
    method = build(f"method.memories={memories}", f"support_set.count={count}")
    method.segment(episode)
    assert {match.of for matches in method.matches.values() for match in matches} == {of}


def test_a_slice_beside_the_nearest_gives_one_memory_more(episode):
    liver = episode.organs["liver"]  # served by parts 0, 0, 1, 1
    beside = replace(liver, beside=np.array([-1, 1, 0, -1]))
    assert beside.serving() == [[1], [3, 1], [1, 3], [3]]
    assert beside.asking(np.array([0, 2])).serving() == [[1], [1, 3]]
    method = build("matcher=ncc", "method.memories=3")
    alone = method.segment(episode)["liver"]
    together = method.segment(replace(episode, organs={"liver": beside}))["liver"]
    assert [match.of for match in method.matches["liver"]] == [3, 4, 4, 3]
    assert [(a != b).any() for a, b in zip(alone, together, strict=True)] == [0, 1, 1, 0]


def test_more_memories_change_the_answer(episode):
    one, three = build("matcher=ncc"), build("matcher=ncc", "method.memories=3")
    assert any(
        (a != b).any()
        for a, b in zip(one.segment(episode).values(), three.segment(episode).values(), strict=True)
    )


def test_a_support_set_smaller_than_the_memories_gives_all_it_has(episode):
    few = build("matcher=ncc", "support_set.count=2", "method.memories=5").segment(episode)
    all_two = build("matcher=ncc", "support_set.count=2", "method.memories=2").segment(episode)
    for organ, mask in few.items():
        np.testing.assert_array_equal(mask, all_two[organ])
    # N_T x (query slices served) + 1 copies: sets of different sizes in one episode
    sets = ["support_set=paper", "support_set.count=null", "support_set.per_query_slice=1"]
    masks = build("matcher=ncc", *sets, "method.memories=9").segment(episode)
    assert masks["spleen"].shape == (5, 96, 96)


def test_no_memory_is_refused():
    with pytest.raises(InstantiationException, match=r"method\.memories=0"):
        build("method.memories=0")
