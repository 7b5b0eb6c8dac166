"""The feature cache: results with and without are the same, nothing known is computed again."""

# ruff: noqa: F401, F811 (episode is a fixture)
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from fsmis.cli import CONF_DIR
from fsmis.errors import UserError
from fsmis.methods.augment_match_prompt import AugmentMatchPrompt
from fsmis.runs.variant import settings
from fsmis.segmenters.cache import FeatureCache, fingerprint, open_cache
from tests.methods.test_augment_match_prompt import build, episode


class Brightness:
    """Stands for a network: two outputs an image; counts what it computes."""

    def __init__(self) -> None:
        self.computed = 0

    def __call__(self, images: np.ndarray) -> list[Tensor]:
        self.computed += len(images)
        pixels = torch.from_numpy(images)
        return [pixels.mean((1, 2)), (2 * pixels).to(torch.bfloat16)]


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 8, 8), dtype=np.float32)


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_only_unknown_images_are_computed(tmp_path):
    network, pictures = Brightness(), images(6)
    expected = Brightness()(pictures)
    cache = FeatureCache(tmp_path, 10**9)
    for rows, computed in (([0, 1], 2), ([1, 0, 2, 2, 3], 4), (range(6), 6), (range(6), 6)):
        found = cache.reuse("net", pictures[list(rows)], network)
        assert network.computed == computed
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs[list(rows)])
    again = FeatureCache(tmp_path, 10**9).reuse("net", pictures, network)  # another process
    assert network.computed == 6 and torch.equal(again[1], expected[1])
    cache.reuse("another net", pictures, network)
    assert network.computed == 12


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: bytes(len(content)),
        lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        lambda content: b"version https://git-lfs",
    ],
    ids=["empty", "a byte short", "half", "zeros", "one bit", "text"],
)
def test_damaged_entries_are_computed_again(tmp_path, damage: Callable[[bytes], bytes]):
    network, pictures = Brightness(), images(3)
    cache = FeatureCache(tmp_path, 10**9)
    expected = cache.reuse("net", pictures, network)
    victim = entries(tmp_path)[1]
    victim.write_bytes(damage(victim.read_bytes()))
    for _ in range(2):  # mended by the first
        found = cache.reuse("net", pictures, network)
        assert network.computed == 4
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_least_recently_used_go_first(tmp_path):
    network, pictures = Brightness(), images(40)
    size = size_of_an_entry(tmp_path / "one")
    cache = FeatureCache(tmp_path / "many", 20 * size)
    for picture in pictures:
        cache.reuse("net", picture[None], network)
        cache.reuse("net", pictures[:1], network)  # in use all the time
        assert sum(path.stat().st_size for path in entries(tmp_path / "many")) <= 20 * size
    assert network.computed == 40
    cache.reuse("net", pictures[-15:], network)
    assert network.computed == 40  # the latest are there
    cache.reuse("net", pictures[1:2], network)
    assert network.computed == 41  # the first but one is not


def size_of_an_entry(folder: Path) -> int:
    FeatureCache(folder, 10**9).reuse("net", images(1), Brightness())
    return next(entry.stat().st_size for entry in entries(folder))


WRITER = """
import sys
from pathlib import Path
import numpy as np
import torch
from fsmis.segmenters.cache import FeatureCache
images = np.random.default_rng(0).random((30, 8, 8), dtype=np.float32)
cache = FeatureCache(Path(sys.argv[1]), 15_000)
for _ in range(15):
    found, = cache.reuse("net", images, lambda unknown: [torch.from_numpy(3 * unknown)])
    assert torch.equal(found, torch.from_numpy(3 * images))
"""


def test_processes_share_a_folder_that_is_too_small_for_them(tmp_path):
    arguments = [sys.executable, "-W", "error::UserWarning", "-c", WRITER, tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    writers = [subprocess.Popen(arguments, env=environment) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    left = entries(tmp_path)
    assert left and all(path.suffix == ".features" for path in left)
    assert sum(path.stat().st_size for path in left) <= 15_000 * 1.15


def test_without_a_place_for_entries_work_goes_on(tmp_path):
    (tmp_path / "file").write_text("no folder")
    network, pictures = Brightness(), images(2)
    cache = FeatureCache(tmp_path / "file", 10**9)
    with pytest.warns(UserWarning, match=r"features are not kept: .*file"):
        found = cache.reuse("net", pictures, network)
    assert torch.equal(found[0], Brightness()(pictures)[0])


def test_what_identifies_a_network():
    torch.manual_seed(0)
    network, device = torch.nn.BatchNorm2d(3), torch.device("cpu")
    first = fingerprint(network, {"image_size": 64}, device)
    assert first == fingerprint(network, {"image_size": 64}, device)
    others = [fingerprint(network, {"image_size": 96}, device)]
    network.running_mean[1] += 1e-7
    others.append(fingerprint(network, {"image_size": 64}, device))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # sums are added up in another order
    others.append(fingerprint(network, {"image_size": 64}, device))
    torch.set_num_threads(threads)
    assert len({first, *others}) == 4


def test_switch_and_size():
    assert open_cache(None, 10) is None
    with pytest.raises(UserError, match=r"cache\.max_gb=0"):
        open_cache("somewhere", 0)


def test_scores_know_nothing_of_the_cache(tmp_path):
    identities = []
    for place in ("null", tmp_path):
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            config = compose("config", overrides=["matcher=lpips", f"cache.dir={place}"])
        identities.append(settings(config.method, "method"))
    assert identities[0] == identities[1]
    assert not any("cache" in key for key in identities[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_features_are_those_computed_now_to_the_last_bit(tmp_path, threads):
    pictures = np.random.default_rng(1).random((5, 40, 48), dtype=np.float32)
    segmenter = build().segmenter
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = segmenter.encode(pictures)
        segmenter.cache = FeatureCache(tmp_path, 10**9)
        segmenter.encode(pictures[[3]])
        segmenter.encode(pictures[[4, 1]])
        found = segmenter.encode(pictures)
    finally:
        torch.set_num_threads(before)
    assert segmenter.images_encoded == 5 + 5
    assert torch.equal(found.position, expected.position)
    for ours, theirs in zip(found.levels, expected.levels, strict=True):
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()


def test_a_run_that_changes_only_the_matcher_encodes_nothing(tmp_path, episode):
    cached = f"cache.dir={tmp_path}"
    first = build("matcher=encoder_features", cached)
    first.segment(episode)
    assert first.segmenter.images_encoded == 6 + 3 * 6
    for matcher in ("encoder_features", "ncc", "ssim"):
        method = build(f"matcher={matcher}", cached)
        masks = method.segment(episode)
        assert method.segmenter.images_encoded == 0
        for organ, mask in build(f"matcher={matcher}").segment(episode).items():
            np.testing.assert_array_equal(mask, masks[organ])


def test_lpips_vectors_are_shared_too(tmp_path, episode):
    def lpips(*overrides: str) -> AugmentMatchPrompt:
        return build("matcher=lpips", "matcher.weights=random", *overrides)

    cached = f"cache.dir={tmp_path}"
    first, fewer = lpips(cached), lpips(cached, "support_set.count=4")
    first.segment(episode)
    masks = fewer.segment(episode)
    assert first.matcher.images_encoded == 3 * 6 + 6  # copies and query slices
    assert fewer.matcher.images_encoded == 0
    for organ, mask in lpips("support_set.count=4").segment(episode).items():
        np.testing.assert_array_equal(mask, masks[organ])


def rows_memorised(method: AugmentMatchPrompt) -> list[int]:
    """Rows of each pass of the memory encoder from now on."""
    rows: list[int] = []
    memory_encoder = method.segmenter.model.memory_encoder
    memory_encoder.register_forward_hook(lambda module, given, made: rows.append(len(given[0])))
    return rows


def test_memories_of_labelled_copies_are_shared_and_no_others(tmp_path, episode):
    lively = ["method.memories=2", "method.volume_pass.confidence=0", "support_set.count=4"]
    later = ("method.volume_pass.reach=1", "method.largest_component=true")
    predicted = sum(len(task.query_slices) for task in episode.organs.values())
    first = build(f"cache.dir={tmp_path}", *lively, "method.volume_pass.reach=1")
    rows = rows_memorised(first)
    first.segment(episode)
    copies = sum(rows) - predicted
    assert copies > 0 and rows[:copies] == [1] * copies
    for changed in later:
        method = build(f"cache.dir={tmp_path}", *lively, changed)
        rows = rows_memorised(method)
        masks = method.segment(episode)
        assert sum(rows) == (predicted if "reach=1" in changed else 0)
        for organ, mask in build(*lively, changed).segment(episode).items():
            np.testing.assert_array_equal(mask, masks[organ])


def test_memories_are_those_computed_now_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(1)
    pictures, masks = rng.random((5, 40, 48), dtype=np.float32), rng.random((5, 40, 48)) > 0.5
    segmenter = build().segmenter
    expected = segmenter.memorise(segmenter.encode(pictures), masks)
    segmenter.cache = FeatureCache(tmp_path, 10**9)
    features = segmenter.encode(pictures)
    segmenter.memorise(features[[3, 1]], masks[[3, 1]])
    found = segmenter.memorise(features, masks)
    other = segmenter.memorise(features[:1], ~masks[:1])
    assert not torch.equal(other.features, found.features[:1])
    for ours, theirs in (
        (found.features, expected.features),
        (found.position, expected.position),
        (found.pointer, expected.pointer),
    ):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
