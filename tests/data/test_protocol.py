"""Folds, support slices and query slices, against the reference on the real CHAOS labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fsmis.data.dataset import Dataset, Scan
from fsmis.data.protocol import QUERY_SLICES, Episode, Protocol, Split, slices_with, truth
from fsmis.errors import UserError
from fsmis.methods.registration import CopyMask
from fsmis.runs.evaluation import score

CONF = Path(__file__).resolve().parents[2] / "conf"
REFERENCE = {
    "alpnet": ("ALPNet", 43.93),
    "adnet": ("ADNet_EP1", 45.25),
    "qnet": ("QNetRPTGMRD_supp2", 48.62),
}
VARIANTS = list(REFERENCE)


def protocol(of_variant: str, **overrides: object) -> Protocol:
    """The protocol as its YAML in conf/ describes it."""
    config = OmegaConf.to_container(OmegaConf.load(CONF / "protocol" / f"{of_variant}.yaml"))
    del config["_target_"]
    return Protocol(**(config | overrides))


@pytest.fixture(scope="module")
def chaos(chaos_root: Path) -> tuple[Dataset, dict[str, Scan]]:
    dataset = instantiate(OmegaConf.load(CONF / "dataset" / "chaos_mri.yaml"), root=str(chaos_root))
    return dataset, {scan_id: dataset.load(scan_id) for scan_id in dataset.scan_ids}


@pytest.fixture(scope="module")
def phantom(phantom_root: Path) -> Dataset:
    return instantiate(OmegaConf.load(CONF / "dataset" / "phantom.yaml"), root=str(phantom_root))


def scan_with(scan_id: str, **organ_slices: list[int]) -> Scan:
    """A scan of 10 slices whose organs "a" (label 1) and "b" (label 2) lie in the given slices."""
    label = np.zeros((10, 4, 4), np.uint8)
    for organ, slices in organ_slices.items():
        label[slices, :, 0 if organ == "a" else 1] = {"a": 1, "b": 2}[organ]
    return Scan(scan_id, np.zeros(label.shape, np.float32), label, (1.0, 1.0, 1.0), np.eye(4))


class TwoOrgans:
    """What an episode needs of a dataset."""

    name = "two_organs"
    organs = {"a": 1, "b": 2}  # noqa: RUF012


SPLIT = Split(0, "1", ["2"])


def cut(variant: str, support: Scan, query: Scan, **overrides: object) -> Episode:
    return protocol(variant, **overrides).episode(TwoOrgans(), SPLIT, support, query)


# the reference


@pytest.mark.parametrize("variant", VARIANTS)
def test_folds_support_slices_and_floor_on_real_scans(chaos, chaos_golden, variant: str) -> None:
    dataset, scans = chaos
    reference = chaos_golden[REFERENCE[variant][0]]
    rules = protocol(variant)
    splits = rules.splits(dataset)
    assert len(splits) == len(reference["folds"])

    dice: dict[str, list[float]] = {organ: [] for organ in dataset.organs}
    for split, fold in zip(splits, reference["folds"], strict=True):
        assert split.support_id == str(fold["support"])
        assert split.query_ids == [str(query) for query in fold["query"]]
        of_fold: dict[str, list[float]] = {organ: [] for organ in dataset.organs}
        for query_id in split.query_ids:
            query = scans[query_id]
            episode = rules.episode(dataset, split, scans[split.support_id], query)
            assert list(episode.organs) == list(dataset.organs) and not episode.skipped
            for organ, mask in CopyMask().segment(episode).items():
                task = episode.organs[organ]
                assert task.support_slices.tolist() == fold["support_z"][organ.upper()]
                true = truth(query, dataset.organs[organ], task)
                overlap = 2 * (mask & true).sum() / (mask.sum() + true.sum())
                of_fold[organ].append(float(overlap))
        for organ, values in of_fold.items():
            dice[organ].append(float(np.mean(values)))

    floor = {organ: 100 * float(np.mean(folds)) for organ, folds in dice.items()}
    expected = reference["copy_support_mask_dice"]
    for organ, value in floor.items():
        assert round(value, 2) == expected[organ.upper()], organ
    assert (
        round(float(np.mean(list(floor.values()))), 2) == expected["MEAN"] == REFERENCE[variant][1]
    )


def test_every_chaos_scan_is_a_query_once_in_alpnet_alone(chaos, chaos_golden) -> None:
    dataset, _ = chaos
    for variant, (name, _) in REFERENCE.items():
        queries = [q for split in protocol(variant).splits(dataset) for q in split.query_ids]
        never = [int(i) for i in dataset.scan_ids if i not in queries]
        twice = [int(i) for i in dataset.scan_ids if queries.count(i) == 2]
        assert never == chaos_golden[name]["never_tested"]
        assert twice == chaos_golden[name]["tested_twice"]


def test_all_support_indices_of_qnet_serve_each_scan_of_a_fold_once(chaos) -> None:
    dataset, _ = chaos
    supports = [
        protocol("qnet", support_index=i, fold=4).splits(dataset)[0].support_id for i in range(5)
    ]
    assert supports == ["1", "36", "37", "38", "39"]


# folds


def test_fold_is_a_number_a_list_or_all(phantom: Dataset) -> None:
    everything = protocol("alpnet").splits(phantom)
    assert everything == [Split(0, "3", ["1", "2"]), Split(1, "1", ["3", "4"])]
    assert protocol("alpnet", fold=1).splits(phantom) == everything[1:]
    assert protocol("alpnet", fold=[1, 0, 1]).splits(phantom) == everything


@pytest.mark.parametrize("fold", [2, -1, [0, 5], [], "0", "each", 0.5])
def test_a_fold_that_is_not_there(phantom: Dataset, fold: object) -> None:
    with pytest.raises(UserError, match=r"protocol\.fold=.*phantom has 2 folds, 0 to 1"):
        protocol("alpnet", fold=fold).splits(phantom)


def test_a_support_index_beyond_the_fold(phantom: Dataset) -> None:
    for index in (3, -1):
        with pytest.raises(UserError, match=rf"support_index={index}.*choose 0 to 2"):
            protocol("qnet", support_index=index).splits(phantom)


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [
        ("alpnet", {"variant": "alp"}),
        ("alpnet", {"query_slices": "all"}),
        ("alpnet", {"n_parts": 0}),
        ("alpnet", {"n_parts": 1.5}),
        ("alpnet", {"support_index": 2}),
        ("qnet", {"support_index": None}),
    ],
)
def test_settings_that_are_none(variant: str, overrides: dict) -> None:
    key = next(iter(overrides))
    with pytest.raises(UserError, match=rf"protocol\.{key}="):
        protocol(variant, **overrides)


def test_a_scan_does_not_support_itself() -> None:
    scan = scan_with("2", a=[1], b=[2])
    with pytest.raises(UserError, match="scan 2 would support itself"):
        cut("alpnet", scan, scan)


# support and query slices


def test_support_slices_are_the_middles_of_the_parts() -> None:
    support = scan_with("1", a=[0, 2, 3, 5, 6, 9], b=[4])
    query = scan_with("2", a=[1], b=[2])
    three = cut("alpnet", support, query).organs
    assert three["a"].support_slices.tolist() == [2, 5, 9]
    assert three["b"].support_slices.tolist() == [4, 4, 4]
    assert three["a"].support_masks.any(axis=(1, 2)).all()
    one = cut("alpnet", support, query, n_parts=1).organs
    assert one["a"].support_slices.tolist() == [5]
    assert one["a"].part.tolist() == [0]


def test_parts_are_thirds_of_the_extent_or_of_the_slices_with_the_organ() -> None:
    support = scan_with("1", a=[0, 1, 2], b=[4])
    query = scan_with("2", a=[1, 2, 3, 8], b=[4])
    alpnet = cut("alpnet", support, query).organs["a"]
    assert alpnet.query_slices.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert alpnet.part.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    qnet = cut("qnet", support, query).organs["a"]
    assert qnet.query_slices.tolist() == [1, 2, 3, 8]
    assert qnet.part.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize(("variant", "middle"), [("alpnet", 1), ("adnet", 2), ("qnet", 2)])
def test_full_volume_takes_all_slices_with_parts_by_the_extent(variant: str, middle: int) -> None:
    support = scan_with("1", a=[0, 1, 2], b=[4])
    query = scan_with("2", a=[2, 3, 4, 5, 6, 7], b=[4])
    organs = cut(variant, support, query, query_slices="full_volume").organs
    assert organs["a"].query_slices.tolist() == list(range(10))
    assert organs["a"].part.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert organs["b"].part[4] == middle
    assert organs["b"].part[0] == 0 and organs["b"].part[9] == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_untold_full_volume_shows_nothing_of_the_extent(variant: str) -> None:
    support = scan_with("1", a=[0, 1, 2])
    low, high = scan_with("2", a=[0, 1, 2]), scan_with("2", a=[7, 8])
    told = [cut(variant, support, query, query_slices="full_volume") for query in (low, high)]
    assert told[0].organs["a"].part.tolist() != told[1].organs["a"].part.tolist()
    untold = "untold_full_volume"
    blind = [cut(variant, support, query, query_slices=untold) for query in (low, high)]
    assert all(episode.whole_volume for episode in blind)
    assert blind[0].organs["a"].part.tolist() == blind[1].organs["a"].part.tolist()


@given(
    variant=st.sampled_from(VARIANTS),
    n_parts=st.sampled_from([1, 3]),
    query_slices=st.sampled_from(QUERY_SLICES),
    support_slices=st.sets(st.integers(0, 9), min_size=1),
    extent=st.sets(st.integers(0, 9), min_size=1),
)
def test_tasks_hold_what_they_promise(
    variant, n_parts, query_slices, support_slices, extent
) -> None:
    support = scan_with("1", a=sorted(support_slices))
    query = scan_with("2", a=sorted(extent))
    episode = cut(variant, support, query, n_parts=n_parts, query_slices=query_slices)
    task = episode.organs["a"]
    assert task.support_masks.shape == (n_parts, 4, 4)
    assert set(task.support_slices) <= support_slices and task.support_masks.any(axis=(1, 2)).all()
    assert (np.diff(task.support_slices) >= 0).all()
    assert set(task.query_slices) >= extent
    assert (np.diff(task.query_slices) > 0).all()
    assert len(task.part) == len(task.query_slices)
    assert task.part.min() >= 0 and task.part.max() < n_parts and (np.diff(task.part) >= 0).all()
    true = truth(query, 1, task)
    assert true.shape == (len(task.query_slices), 4, 4)
    assert (
        slices_with(true).tolist()
        == np.flatnonzero(np.isin(task.query_slices, list(extent))).tolist()
    )


def test_organ_range_parts_are_those_of_the_full_volume() -> None:
    support, query = scan_with("1", a=[0, 1, 2]), scan_with("2", a=[2, 3, 5, 6, 7])
    for variant in VARIANTS:
        ranged = cut(variant, support, query).organs["a"]
        full = cut(variant, support, query, query_slices="full_volume").organs["a"]
        assert full.part[ranged.query_slices].tolist() == ranged.part.tolist()


# what a method sees


def test_an_organ_that_a_scan_lacks_is_skipped_with_its_reason() -> None:
    episode = cut("alpnet", scan_with("1", a=[3]), scan_with("2", b=[4]))
    assert not episode.organs
    assert episode.skipped == {
        "a": "absent from query scan 2",
        "b": "absent from support scan 1",
    }


def test_an_episode_carries_no_label(phantom: Dataset) -> None:
    split = protocol("alpnet", fold=0).splits(phantom)[0]
    support, query = phantom.load(split.support_id), phantom.load(split.query_ids[0])
    episode = protocol("alpnet").episode(phantom, split, support, query)
    assert episode.support.label is None and episode.query.label is None
    assert (episode.dataset, episode.fold) == ("phantom", 0)
    with pytest.raises(ValueError, match="carries no label"):
        protocol("alpnet").episode(phantom, split, episode.support, episode.query)


def test_names_carry_the_variant() -> None:
    assert protocol("alpnet").name == "alpnet-3parts-organ_range"
    one = protocol("qnet", n_parts=1, query_slices="full_volume")
    assert one.name == "qnet2-1part-full_volume"
    assert one.oracle == protocol("alpnet", query_slices="untold_full_volume").oracle == "none"
    assert "contain the organ" in protocol("adnet", n_parts=1).oracle


# the floor


def test_copying_the_mask_is_a_floor_on_the_phantom(phantom: Dataset) -> None:
    rules = protocol("alpnet")
    dice = []
    for split in rules.splits(phantom):
        support = phantom.load(split.support_id)
        for query_id in split.query_ids:
            query = phantom.load(query_id)
            episode = rules.episode(phantom, split, support, query)
            for organ, mask in CopyMask().segment(episode).items():
                task = episode.organs[organ]
                assert mask.dtype == bool
                true = truth(query, phantom.organs[organ], task)
                dice.append(score(mask, true, query.spacing)["dice"])
    assert 0.4 < np.mean(dice) < 0.7


def test_a_copied_mask_is_resized_to_the_query() -> None:
    method = instantiate(OmegaConf.load(CONF / "method" / "copy_mask.yaml"))
    support, query = scan_with("1", a=[3]), scan_with("2", a=[4])
    large = replace(
        query, image=np.zeros((10, 8, 12), np.float32), label=query.label.repeat(2, 1).repeat(3, 2)
    )
    mask = method.segment(cut("alpnet", support, large))["a"]
    assert mask.shape == (1, 8, 12) and mask.dtype == bool
    np.testing.assert_array_equal(mask, large.label[[4]] == 1)
