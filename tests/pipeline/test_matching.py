"""Stage 2: distances equal their references, choices are deterministic, bad input is named."""

import urllib.error
import warnings
import weakref
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from omegaconf import OmegaConf
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fsmis.errors import UserError
from fsmis.pipeline.distances import BACKBONES, Lpips, Psnr, build_lpips
from fsmis.pipeline.matching import Identity, Matcher, Random, match, nearest, to_tensor
from fsmis.segmenters.features import Features

ROOT = Path(__file__).parents[2]
MATCHERS = sorted(path.stem for path in (ROOT / "conf" / "matcher").glob("*.yaml"))


def from_yaml(name: str, **changes: Any) -> Any:
    """The matcher of a YAML; LPIPS on random weights."""
    if name == "lpips":
        changes = {"weights": "random", **changes}
    matcher = OmegaConf.merge(OmegaConf.load(ROOT / "conf" / "matcher" / f"{name}.yaml"), changes)
    return instantiate(OmegaConf.create({"seed": 0, "device": "cpu", "matcher": matcher}).matcher)


def read(matcher: Matcher, images: np.ndarray) -> np.ndarray | Features:
    """Images as the matcher reads them."""
    return block_features(images) if matcher.on_features else images


def block_features(images: np.ndarray) -> Features:
    """Stands for a segmenter's features: the pixels of every 8 x 8 block, at two levels."""
    blocks = torch.from_numpy(images).unfold(1, 8, 8).unfold(2, 8, 8).flatten(3)
    fine = blocks.permute(0, 3, 1, 2)
    return Features([fine, fine.repeat(1, 2, 1, 1).roll(1, 2) - 0.4], torch.zeros(1))


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Ten support images and nine queries, three of them support images with noise of 2.5, 1 and
    0.5 grey levels of 255."""
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.random((19, 8, 8)), np.ones((1, 6, 6)))
    images = np.clip(0.8 * smooth + 0.2 * rng.random(smooth.shape), 0, 1).astype(np.float32)
    support, query = images[:10], images[10:]
    for i, noise in ((3, 1e-2), (5, 4e-3), (7, 2e-3)):
        query[i] = np.clip(support[i] + noise * rng.standard_normal((48, 48)), 0, 1)
    return support, query


@pytest.mark.parametrize("net", list(BACKBONES))
def test_lpips_equals_the_package(pictures, net):
    support, query = pictures
    matcher = from_yaml("lpips", net=net, seed=3)
    matcher.fit(support)
    ours = matcher.distance(query).numpy()
    assert matcher.images_encoded == len(support) + len(query)

    torch.manual_seed(3)
    with warnings.catch_warnings(action="ignore"):
        reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).double()
    a, b = (torch.from_numpy(x).double()[:, None].expand(-1, 3, -1, -1) for x in (query, support))
    with torch.no_grad():
        theirs = torch.stack([reference(q[None], b, normalize=True).flatten() for q in a]).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    np.testing.assert_array_equal(ours.argmin(1), theirs.argmin(1))
    assert ours[7].argmin() == 7 and ours[7, 7] < 1e-3 * np.median(ours[7])


@pytest.mark.parametrize(("queries", "copies"), [(3, 40), (40, 3)])
def test_vectors_of_the_fewer_are_kept_the_others_streamed(queries, copies):
    """Memory must not grow with the support set: 512 copies of LPIPS vectors take 1.3 GB."""
    alive: set[int] = set()
    most = 0

    class Watched(Psnr):
        def vectors(self, slices: np.ndarray) -> torch.Tensor:
            nonlocal most
            made = super().vectors(slices)
            alive.add(id(made))
            weakref.finalize(made, alive.discard, id(made))
            most = max(most, len(alive))
            return made

    matcher = Watched(cap_db=100, image_size=None, batch_size=2)
    rng = np.random.default_rng(0)
    support, query = (rng.random((n, 8, 8), dtype=np.float32) for n in (copies, queries))
    matcher.fit(support)
    whole = Psnr(cap_db=100, image_size=None, batch_size=100)
    whole.fit(support)
    np.testing.assert_allclose(matcher.distance(query), whole.distance(query))
    assert matcher.images_encoded == queries + copies
    assert most <= 2  # the batch being compared and the one being made


def test_lpips_of_identical_images_is_zero(pictures):
    support, _ = pictures
    matcher = from_yaml("lpips")
    matcher.fit(support)
    distance = matcher.distance(support).numpy()
    np.testing.assert_allclose(np.diag(distance), 0, atol=1e-10)
    np.testing.assert_allclose(distance, distance.T, rtol=1e-6, atol=1e-10)


def test_ssim_equals_skimage(pictures):
    support, query = pictures
    for window in (7, 11):
        matcher = from_yaml("ssim", window=window)
        matcher.fit(support)
        expected = [
            [
                1 - structural_similarity(q, s, data_range=1, win_size=window)
                for s in support.astype(float)
            ]
            for q in query.astype(float)
        ]
        np.testing.assert_allclose(matcher.distance(query), expected, atol=2e-6)


def test_psnr_equals_skimage_and_is_capped(pictures):
    support, query = pictures
    matcher = from_yaml("psnr")
    matcher.fit(support)
    expected = [[-peak_signal_noise_ratio(q, s, data_range=1) for s in support] for q in query]
    np.testing.assert_allclose(matcher.distance(query), expected, rtol=1e-4)
    assert matcher.distance(support[:1])[0, 0] == pytest.approx(-100)


def test_ncc_equals_numpy_and_ranks_constant_images(pictures):
    support, query = pictures
    matcher = from_yaml("ncc")
    black = np.zeros((1, 48, 48), np.float32)
    matcher.fit(np.concatenate([support, black, black + 0.3]))
    expected = [[1 - np.corrcoef(q.ravel(), s.ravel())[0, 1] for s in support] for q in query]
    distance = matcher.distance(query).numpy()
    np.testing.assert_allclose(distance[:, :10], expected, atol=1e-5)
    np.testing.assert_allclose(distance[:, 10:], 1, atol=1e-6)
    np.testing.assert_allclose(matcher.distance(black)[0], [1] * 10 + [0, 0], atol=1e-6)
    np.testing.assert_allclose(matcher.distance(0.5 * support)[:, :10].diag(), 0, atol=1e-6)


@pytest.mark.parametrize("level", [0, 1, -1])
def test_encoder_features_is_mean_cosine_distance(pictures, level):
    support, query = (block_features(images) for images in pictures)
    matcher = from_yaml("encoder_features", level=level)
    matcher.fit(support)
    a, b = query.levels[level], support.levels[level]
    cosine = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    np.testing.assert_allclose(matcher.distance(query), (1 - cosine).mean((2, 3)), atol=1e-5)


def test_encoder_features_names_a_level_that_is_not_there(pictures):
    features = block_features(pictures[0])
    with pytest.raises(UserError, match=r"matcher\.level=2; the segmenter has 2 levels"):
        match(from_yaml("encoder_features", level=2), features, features)


@pytest.mark.parametrize("name", MATCHERS)
def test_every_yaml_matches_a_copy_to_itself_or_is_a_control(pictures, name):
    matcher = from_yaml(name)
    assert isinstance(matcher, Matcher)
    support, query = (read(matcher, images) for images in pictures)
    chosen = match(matcher, support, support)
    assert chosen.shape == (10, 1) and chosen.dtype == np.int64
    if name == "identity":
        assert (chosen == 0).all()
    elif name == "random":
        assert len(set(chosen[:, 0])) > 1
    else:
        np.testing.assert_array_equal(chosen[:, 0], np.arange(10))
    assert matcher.distance(query).shape == (9, 10)


@pytest.mark.parametrize("name", [name for name in MATCHERS if name != "random"])
def test_tied_copies_give_the_first(pictures, name):
    matcher = from_yaml(name)
    query, same = (read(matcher, x) for x in (pictures[1], np.repeat(pictures[1][:1], 11, axis=0)))
    assert (match(matcher, query, same) == 0).all()


@pytest.mark.parametrize("name", MATCHERS)
def test_choice_does_not_depend_on_the_other_queries(pictures, name):
    matcher = from_yaml(name)
    support, query = (read(matcher, images) for images in pictures)
    together = match(matcher, query, support, k=3)
    alone = [match(matcher, query[i : i + 1], support, k=3) for i in reversed(range(9))]
    np.testing.assert_array_equal(together, np.concatenate(alone[::-1]))


def test_random_depends_on_the_seed(pictures):
    support, query = pictures
    assert (match(Random(0), query, support) != match(Random(1), query, support)).any()


@given(
    arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.integers(0, 3)),
    st.integers(1, 6),
)
def test_nearest_is_the_first_smallest_and_comes_last(distances, k):
    k = min(k, distances.shape[1])
    chosen = nearest(torch.from_numpy(distances), k)
    expected = distances.argsort(axis=1, kind="stable")[:, :k][:, ::-1]
    np.testing.assert_array_equal(chosen, expected)


def test_nearest_takes_rounding_for_a_tie_and_no_more():
    assert nearest(torch.tensor([[0.5, 0.1 + 1e-9, 0.1]], dtype=torch.float64)) == 1
    assert nearest(torch.tensor([[0.5, 0.1 + 1e-5, 0.1]], dtype=torch.float64)) == 2


def test_nearest_leaves_the_distances_alone():
    distances = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64)
    nearest(distances, 2)
    assert distances.tolist() == [[3.0, 1.0, 2.0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_distances_that_are_not_finite(value):
    distances = torch.zeros(3, 4)
    distances[1, 2] = value
    with pytest.raises(UserError, match="query slice 1 to support copy 2"):
        nearest(distances)


@settings(max_examples=10)
@given(bad=st.sampled_from([np.nan, np.inf, -0.1, 255.0]), support_is_bad=st.booleans())
def test_images_out_of_range(bad, support_is_bad):
    good, wrong = np.full((2, 8, 8), 0.5, np.float32), np.full((2, 8, 8), 0.5, np.float32)
    wrong[1, 3, 3] = bad
    query, support = (good, wrong) if support_is_bad else (wrong, good)
    with pytest.raises(UserError, match="support" if support_is_bad else "query"):
        match(Identity(), query, support)


def test_no_candidates_or_too_few(pictures):
    support, query = pictures
    with pytest.raises(UserError, match="at least one support slice"):
        match(Identity(), query, support[:0])
    with pytest.raises(UserError, match="at least one query slice"):
        match(Identity(), query[:0], support)
    for k in (0, 11):
        with pytest.raises(UserError, match=f"the {k} nearest of 10 support copies"):
            match(Identity(), query, support, k)


@pytest.mark.parametrize("net", list(BACKBONES))
def test_images_below_the_smallest_size_of_a_backbone(net):
    smallest = BACKBONES[net].min_size
    matcher = from_yaml("lpips", net=net)
    fits = np.zeros((1, smallest, smallest), np.float32)
    match(matcher, fits, fits)
    too_small = np.zeros((1, smallest + 9, smallest - 1), np.float32)
    with pytest.raises(UserError, match=f"at least {smallest} pixels"):
        match(matcher, too_small, too_small)
    match(from_yaml("lpips", net=net, image_size=smallest), too_small, too_small)


@pytest.mark.parametrize("name", ["lpips", "psnr", "ncc", "encoder_features"])
def test_batches_hold_an_image_or_more(name):
    with pytest.raises(Exception, match=r"matcher\.batch_size=0") as raised:
        from_yaml(name, batch_size=0)
    assert isinstance(raised.value.__cause__, UserError)  # Hydra wraps it


def test_images_smaller_than_the_ssim_window():
    with pytest.raises(UserError, match=r"matcher\.window=7"):
        from_yaml("ssim").fit(np.zeros((1, 6, 20), np.float32))


@pytest.mark.parametrize("name", ["lpips", "ssim", "psnr", "ncc"])
def test_image_size_resizes_before_all_else(pictures, name):
    support, query = pictures
    matcher = from_yaml(name, image_size=40)
    matcher.fit(support)
    resized = matcher.distance(query)
    by_hand = from_yaml(name)
    by_hand.fit(to_tensor(support, 40).numpy())
    assert to_tensor(support, 40).shape == (10, 40, 40)
    torch.testing.assert_close(resized, by_hand.distance(to_tensor(query, 40).numpy()))


def torchvision_layout(net: str, seed: int) -> dict[str, torch.Tensor]:
    state = build_lpips(net, "random", seed).net.state_dict()
    return {"features." + name.split(".", 1)[1]: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_backbone_from_a_file(tmp_path, net):
    file = tmp_path / "weights of the backbone.pth"
    torch.save({**torchvision_layout(net, seed=5), "classifier.0.bias": torch.zeros(3)}, file)
    loaded = build_lpips(net, str(file), seed=0).state_dict()
    for name, tensor in build_lpips(net, "random", seed=5).state_dict().items():
        assert torch.equal(loaded[name], tensor)


def test_torchvision_weights_come_from_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert BACKBONES["alex"].file == tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth"
    BACKBONES["alex"].file.parent.mkdir(parents=True)
    torch.save(torchvision_layout("alex", seed=5), BACKBONES["alex"].file)
    loaded = build_lpips("alex", "torchvision", seed=0)
    assert torch.equal(
        loaded.net.slice1[0].weight, build_lpips("alex", "random", 5).net.slice1[0].weight
    )


def test_offline_machine_fails_at_construction_and_names_file_and_fix(tmp_path, monkeypatch):
    def offline(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError) as raised:
        Lpips("alex", "torchvision", None, 8, "cpu", 0)
    message = str(raised.value)
    assert str(tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth") in message
    assert "matcher.weights=" in message and "matcher=encoder_features" in message


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"<!DOCTYPE html><html>Access denied</html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"", "0 bytes"),
        (b"PK\x03\x04 torn", "not a checkpoint"),
    ],
)
def test_files_that_are_not_weights(tmp_path, content, named):
    file = tmp_path / "alexnet.pth"
    file.write_bytes(content)
    with pytest.raises(UserError, match=named) as raised:
        build_lpips("alex", str(file), seed=0)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


class Pickled:
    """Anything but tensors in a checkpoint: refused, since unpickling it would run code."""


def test_weights_of_another_kind(tmp_path):
    file = tmp_path / "weights.pth"
    with pytest.raises(UserError, match="does not exist"):
        build_lpips("alex", str(file), seed=0)
    torch.save({"model": Pickled()}, file)
    with pytest.raises(UserError, match="tensors alone"):
        build_lpips("alex", str(file), seed=0)
    torch.save([torch.zeros(1)], file)
    with pytest.raises(UserError, match="holds a list"):
        build_lpips("alex", str(file), seed=0)
    torch.save(torchvision_layout("squeeze", seed=0), file)
    with pytest.raises(UserError, match=r"does not fit matcher\.net=alex"):
        build_lpips("alex", str(file), seed=0)
    with pytest.raises(UserError, match=r"matcher\.net=resnet"):
        build_lpips("resnet", "random", seed=0)


def test_random_weights_leave_the_global_stream_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    build_lpips("squeeze", "random", seed=0)
    assert torch.equal(torch.rand(3), expected)
