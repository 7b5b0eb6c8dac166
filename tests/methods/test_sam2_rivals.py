"""FATE-SAM and FS-MedSAM2: what prompts a slice, what it remembers, and the public predictor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fsmis.data.protocol import Episode, OrganTask
from fsmis.errors import UserError
from fsmis.methods.sam2_video import down_then_up, up_then_down
from fsmis.tools.bench.ways import build_twins
from tests.methods.test_training_free import (
    TOLERANCE,
    build,
    composed,
    episode,
    public_logits,
    scan,
    waves,
)

__all__ = ["episode"]  # a fixture

RIVALS = ["fate_sam", "fs_medsam2"]


def test_the_ways_through_a_volume() -> None:
    ways = [
        [(here, list(before)) for here, before in way(5)] for way in (down_then_up, up_then_down)
    ]
    assert ways[0] == [(2, []), (1, [2]), (0, [2, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 3])]
    assert ways[1] == [(2, []), (3, [2]), (4, [2, 3]), (1, [4, 3, 2]), (0, [4, 3, 2, 1])]
    for way in (down_then_up, up_then_down):
        for count in (1, 2, 3, 8):
            assert sorted(here for here, _ in way(count)) == list(range(count))


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_answers_a_phantom(name: str, episode: Episode) -> None:
    method = build(name)
    masks = method.segment(episode)
    slices = len(episode.query_slices) + len(episode.support_slices)
    assert method.segmenter.images_encoded == slices
    for organ, task in episode.organs.items():
        assert masks[organ].shape == (len(task.query_slices), *episode.query.image.shape[1:])
        assert len(method.matches[organ]) == len(task.query_slices)
    assert any(mask.any() for mask in masks.values())
    # organs do not influence each other, and no query label is read
    labelled = replace(episode.query, label=np.ones(episode.query.image.shape, np.uint8))
    backwards = dict(reversed(episode.organs.items()))
    again = method.segment(replace(episode, organs=backwards, query=labelled))
    for organ, mask in masks.items():
        np.testing.assert_array_equal(again[organ], mask)


@pytest.fixture(scope="module")
def deep() -> tuple[Episode, np.ndarray]:
    """36 query slices, the third labelled slice of three among them, and the masks."""
    support, query = waves(3, seed=0), waves(36, seed=1)
    query[[0, 35]] = support[2]
    y, x = np.mgrid[:90, :80]
    masks = np.stack([(y - 30 - 9 * z) ** 2 + (x - 40) ** 2 < 300 for z in range(3)])
    task = OrganTask("liver", np.arange(3), masks, np.arange(36), np.repeat([0, 1, 2], 12))
    return Episode("waves", 0, scan("1", support), scan("2", query), {"liver": task}), masks


@pytest.mark.filterwarnings("ignore")  # the package warns that its CUDA kernel is not compiled
@pytest.mark.parametrize(("name", "leg"), [("fate_sam", -1), ("fs_medsam2", 1)])
def test_the_first_leg_is_a_video_of_the_public_predictor(
    name: str, leg: int, deep: tuple[Episode, np.ndarray], tmp_path: Path
) -> None:
    episode, masks = deep
    segmenter, public = build_twins("sam2_mini", image_size=64, seed=1)
    neighbours = ["method.neighbours=1", "matcher=identity"] if name == "fate_sam" else []
    method = instantiate(composed(f"method={name}", *neighbours).method, segmenter=segmenter)
    label = (
        0 if name == "fate_sam" else 1
    )  # the first is the identity's, the middle one the other's
    slices = np.arange(36)[18::leg]
    logits = method.answer(episode)["liver"].gated
    video = [episode.support.image[label], *episode.query.image[slices]]
    theirs = public_logits(public, tmp_path / "video", video, masks[label])
    assert np.abs(logits[slices] - theirs).max() < TOLERANCE
    assert (theirs > 0).any() and (theirs < 0).any()
    # the second leg remembers the first: alone, it answers otherwise
    rest = np.setdiff1d(np.arange(36), slices)
    alone = method.answer(episode.asking({"liver": rest}))["liver"].gated
    assert np.abs(alone - logits[rest]).max() > 100 * TOLERANCE


def test_the_nearest_labelled_slices_prompt(deep: tuple[Episode, np.ndarray]) -> None:
    episode, _ = deep
    method = build("fate_sam", "method.neighbours=1")
    method.segment(episode)
    shown = [match.image for match in method.matches["liver"]]
    distance = [
        [float(np.abs(image - of).mean()) for of in episode.support.image] for image in shown
    ]
    chosen = np.argmin(distance, axis=1)
    assert chosen[0] == chosen[35] == 2 and len(set(chosen.tolist())) > 1
    all_three = build("fate_sam", "method.neighbours=7")
    all_three.segment(episode)
    assert {match.of for match in all_three.matches["liver"]} == {3}


def test_bad_neighbours_are_named() -> None:
    with pytest.raises(InstantiationException, match=r"method\.neighbours=0") as error:
        build("fate_sam", "method.neighbours=0")
    assert isinstance(error.value.__cause__, UserError)
