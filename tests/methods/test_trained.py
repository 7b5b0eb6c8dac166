"""Trained baselines: pseudo-labels, episodes, the trainer, and that training sees what it may."""

import errno
import gzip
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch.nn import functional

from fsmis.cli import CONF_DIR
from fsmis.data.dataset import Dataset, Scan
from fsmis.data.nifti import read_volume, write_mask, write_volume
from fsmis.errors import UserError
from fsmis.methods import TrainingScans
from fsmis.methods.trained import (
    ADNetNetwork,
    ALPNetNetwork,
    PANetNetwork,
    QNetNetwork,
    predict,
)
from fsmis.methods.trained.episodes import EpisodeSource, Supervoxels
from fsmis.methods.trained.fold import FoldTraining, Schedule
from fsmis.methods.trained.network import Encoder, EncoderSettings, is_foreground
from fsmis.run import execute
from fsmis.runs.evaluation import Evaluation
from fsmis.runs.records import Cell
from fsmis.tools.plan import PlannedTraining
from tests.gated import start, stopped_at_gate

METHODS = ("panet", "alpnet", "adnet", "qnet")
TINY = (
    "method.training.image_size=32",
    "method.training.encoder.channels=16",
    "method.training.schedule.steps=4",
    "method.training.schedule.pairs=2",
    "method.training.schedule.classes=2",
    "method.training.log_every=2",
    "method.training.supervoxels.min_size=20",
    "method.training.encoder.strides=[4,4]",
    "device=cpu",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Six scans of three slices, 48 px: a bright organ in the first two, a dim one in the third."""
    root = tmp_path_factory.mktemp("scans")
    for scan in range(1, 7):
        rng = np.random.default_rng(scan)
        rows, columns = np.ogrid[:48, :48]
        body = np.hypot(rows - 24, columns - 24) < 22
        organ = np.hypot(rows - 18 - scan, columns - 16) < 7
        dim = np.hypot(rows - 20, columns - 30 - scan / 2) < 8
        label = np.stack([organ, organ, 2 * dim]).astype(np.uint8)
        image = 200 * body + 600 * (label == 1) + 300 * dim + rng.normal(0, 15, (3, 48, 48))
        affine = np.diag([-1.0, 1.0, 4.0, 1.0])
        write_volume(root / f"image_{scan}.nii.gz", image.astype(np.int16), affine)
        write_mask(root / f"label_{scan}.nii.gz", label, affine)
    return root


def overrides_for(root: Path, out: Path, *overrides: str) -> list[str]:
    where = ["dataset=phantom", f"dataset.root={root}", "dataset.fold_starts=3"]
    return [*where, f"results_dir={out}", *TINY, *overrides]


def composed(root: Path, out: Path, *overrides: str):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=overrides_for(root, out, *overrides))


def evaluation(root: Path, out: Path, *overrides: str) -> Evaluation:
    config = composed(root, out, *overrides)
    dataset, protocol = instantiate(config.dataset), instantiate(config.protocol)
    return Evaluation(config.method, dataset, protocol)


def dataset_of(root: Path) -> Dataset:
    return instantiate(composed(root, root, "method=panet").dataset)


def supervoxels(**settings) -> Supervoxels:
    defaults = {"scale": 1.0, "sigma": 1.0, "min_size": 20, "overlap": 0.5}
    return Supervoxels(**{**defaults, "min_intensity": 0.05, "files": None, **settings})


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_and_segments(method, root, tmp_path):
    run = evaluation(root, tmp_path, f"method={method}")
    log = run.fit(0)
    assert log["step"].tolist() == [2, 4]
    assert {"loss", "segmentation", "alignment"} <= set(log)
    assert np.isfinite(log.to_numpy()).all()
    segmented = run.segment(Cell(0, "3", "1"))
    assert segmented.masks["liver"].shape == (2, 48, 48)
    assert segmented.masks["liver"].dtype == bool
    assert run.fit(0) is None  # once a fold


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_the_organ_is_found(method, root, tmp_path):
    run = evaluation(
        root,
        tmp_path,
        f"method={method}",
        "method.training.schedule.steps=50",
        "method.training.schedule.learning_rate=0.003",
        "method.training.log_every=10",
    )
    log = run.fit(0)
    assert log["loss"].iloc[-1] < log["loss"].iloc[0] - 0.1
    segmented = run.segment(Cell(0, "3", "1"))
    mask, truth = segmented.masks["liver"], segmented.truths["liver"]
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.6


def test_a_resumed_training_equals_an_uninterrupted_one(root, tmp_path, monkeypatch):
    overrides = ("method=adnet", "method.training.checkpoint_every=2")
    overrides += ("method.training.schedule.steps=9", "method.training.log_every=3")
    expected = evaluation(root, tmp_path / "whole", *overrides).fit(0)

    class Killed(BaseException):
        pass

    def killed(run, episodes, advance=FoldTraining.advance):
        if run.step == 5:
            raise Killed
        advance(run, episodes)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(FoldTraining, "advance", killed)
        evaluation(root, tmp_path / "cut", *overrides).fit(0)
    (state,) = tmp_path.glob("cut/training/**/state.pt")
    assert torch.load(state, weights_only=True)["step"] == 4
    stand_in = f"method.training._target_={PlannedTraining.__module__}.PlannedTraining"
    planned = evaluation(root, tmp_path / "cut", *overrides, stand_in)
    planned.fit(0)
    assert [fold.steps for fold in planned.build().training.folds.values()] == [5]
    pd.testing.assert_frame_equal(evaluation(root, tmp_path / "cut", *overrides).fit(0), expected)
    whole, cut = (
        next(tmp_path.glob(f"{name}/training/**/weights.safetensors")) for name in ("whole", "cut")
    )
    assert whole.relative_to(tmp_path / "whole") == cut.relative_to(tmp_path / "cut")
    weights, resumed = load_file(whole), load_file(cut)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert not state.exists()


@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_train_a_fold_once(killed, root, tmp_path):
    schedule = ["method.training.schedule._target_=gated.GatedSchedule"]
    schedule += [f"+method.training.schedule.folder={tmp_path}"]
    schedule += ["+method.training.schedule.at=2"]
    every = ["method.training.log_every=1", "method.training.checkpoint_every=1"]
    chosen = ["method=panet", "protocol.fold=0", *every, *schedule]
    overrides = overrides_for(root, tmp_path / "runs", *chosen)
    command = [sys.executable, "-m", "fsmis.run", *overrides]
    with stopped_at_gate(command, tmp_path) as first:
        second = start(command)
        said = next(line for line in second.stdout if "process" in line or "step" in line)
        if killed:
            first.kill()
    printed = [process.communicate()[0] for process in (first, second)]
    assert said == "waiting for another process that trains panet, fold 0\n"
    steps = [re.findall("panet, fold 0: step (.) of 4", text) for text in printed]
    assert steps == ([["1", "2"], ["3", "4"]] if killed else [["1", "2", "3", "4"], []])
    assert (first.returncode, second.returncode) == (-9 if killed else 0, 0), printed
    assert len(set(tmp_path.rglob("weights.safetensors"))) == 1


def test_images_of_another_scale_are_trained_on_anew(root, tmp_path):
    for percentiles in ("[0.5,99.5]", "[0,100]", "[0,100]"):
        scaled = f"dataset.percentiles={percentiles}"
        evaluation(root, tmp_path, "method=panet", scaled).fit(0)
    assert len(set(tmp_path.rglob("weights.safetensors"))) == 2


def test_without_locks_a_fold_is_trained_all_the_same(root, tmp_path, monkeypatch):
    def refuse(lock, **options):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert evaluation(root, tmp_path, "method=panet").fit(0)["step"].tolist() == [2, 4]


def test_a_folder_that_cannot_be_written_is_said(root, tmp_path):
    (tmp_path / "file").touch()
    run = evaluation(root, tmp_path, "method=panet", f"method.training.folder={tmp_path}/file")
    with pytest.raises(UserError, match=f"{tmp_path}/file/.*: cannot be written"):
        run.fit(0)


def test_a_run_keeps_the_curve_and_resumes(root, tmp_path):
    config = composed(root, tmp_path, "method=panet", "protocol.fold=[0,1]")
    groups = ("dataset", "support_set", "matcher", "segmenter", "protocol", "experiment")
    assert execute(config, {"method": "panet", **dict.fromkeys(groups, "any")}) == 0
    (folder,) = tmp_path.glob("phantom/panet/*")
    assert sorted(path.name for path in (folder / "training").iterdir()) == [
        *("fold_0.csv", "fold_0.png", "fold_1.csv", "fold_1.png")
    ]
    assert pd.read_csv(folder / "training/fold_1.csv")["step"].tolist() == [2, 4]
    scores = pd.read_csv(folder / "scores.csv")
    assert sorted(scores["query_scan"].unique()) == [1, 2, 3, 4]


def test_a_finished_training_is_used_again_by_runs_that_differ_in_evaluation(root, tmp_path):
    first = evaluation(root, tmp_path, "method=alpnet").fit(0)
    files = set(tmp_path.rglob("weights.safetensors"))
    other = evaluation(
        root, tmp_path, "method=alpnet", "method.test_window=1", "protocol.n_parts=1"
    )
    pd.testing.assert_frame_equal(other.fit(0), first)
    assert set(tmp_path.rglob("weights.safetensors")) == files
    evaluation(root, tmp_path, "method=alpnet", "method.window=2").fit(0)
    assert len(set(tmp_path.rglob("weights.safetensors"))) == 2


def test_changed_training_scans_train_anew(root, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(root, changed)
    evaluation(root, tmp_path, "method=panet").fit(0)
    shutil.copy(root / "image_4.nii.gz", changed / "image_5.nii.gz")
    evaluation(changed, tmp_path, "method=panet").fit(0)
    assert len(set(tmp_path.rglob("weights.safetensors"))) == 2


@pytest.fixture
def sealed_root(root, tmp_path) -> Path:
    """Scans in which no label, and no image of fold 0 (scans 1, 2 and their support 3), is one."""
    sealed = tmp_path / "sealed"
    shutil.copytree(root, sealed)
    for path in [*sealed.glob("label_*"), *(sealed / f"image_{i}.nii.gz" for i in (1, 2, 3))]:
        path.write_bytes(gzip.compress(b"not a volume"))
    return sealed


@pytest.mark.parametrize("method", METHODS)
def test_training_reads_no_label_and_no_scan_of_the_fold(method, root, sealed_root, tmp_path):
    found = evaluation(sealed_root, tmp_path / "a", f"method={method}").fit(0)
    expected = evaluation(root, tmp_path / "b", f"method={method}").fit(0)
    pd.testing.assert_frame_equal(found, expected)


def test_training_scans_are_those_outside_the_fold_without_labels(root):
    dataset = dataset_of(root)
    protocol = instantiate(composed(root, root, "method=panet", "protocol=qnet").protocol)
    for split in protocol.splits(dataset):
        scans = TrainingScans(dataset, split, setting=1)
        assert not {split.support_id, *split.query_ids} & set(scans.scan_ids)
        assert len(scans.scan_ids) == 3
        assert [scan.label for scan in scans] == [None] * 3


def test_setting_2_leaves_out_slices_with_an_organ_under_test(root):
    config = composed(root, root, "method=panet", "dataset.unscored_labels=[2]").dataset
    config.organs = {"liver": 1}
    dataset = instantiate(config)
    split = instantiate(composed(root, root, "method=panet").protocol).splits(dataset)[0]
    kept = list(TrainingScans(dataset, split, setting=2))
    whole = list(TrainingScans(dataset, split, setting=1))
    for scan, full in zip(kept, whole, strict=True):
        np.testing.assert_array_equal(scan.image, full.image[2:])
        assert scan.label is None
    with pytest.raises(UserError, match="setting=3"):
        TrainingScans(dataset, split, setting=3)


def test_slices_on_both_sides_of_an_organ_are_no_neighbours(root, tmp_path):
    """In setting 2 each run of successive slices is a scan of its own."""
    shutil.copytree(root, tmp_path / "scans")
    for path in (tmp_path / "scans").glob("label_*.nii.gz"):
        label, _, affine = read_volume(path)
        label = np.zeros_like(label)
        label[1, :8, :8] = 1
        write_mask(path, label.astype(np.uint8), affine)
    config = composed(tmp_path / "scans", tmp_path, "method=panet").dataset
    config.organs = {"liver": 1}
    dataset = instantiate(config)
    split = instantiate(composed(root, root, "method=panet").protocol).splits(dataset)[0]
    scans = TrainingScans(dataset, split, setting=2)
    whole = dataset.load_image(scans.scan_ids[0]).image
    below, above = list(scans)[:2]
    assert below.id == above.id == scans.scan_ids[0]
    np.testing.assert_array_equal(below.image, whole[:1])
    np.testing.assert_array_equal(above.image, whole[2:])


def test_setting_2_with_every_slice_taken_says_what_to_do(root, tmp_path):
    run = evaluation(root, tmp_path, "method=panet", "method.training.setting=2")
    with pytest.raises(UserError, match=r"no slice outside fold 0 .*dataset\.organs"):
        run.fit(0)


def test_no_scan_outside_the_fold_says_what_to_do(root, tmp_path):
    two = tmp_path / "two"
    two.mkdir()
    for scan in (1, 2):
        for kind in ("image", "label"):
            shutil.copy(root / f"{kind}_{scan}.nii.gz", two)
    overrides = ("dataset.fold_starts=2", "method=copy_mask")
    config = composed(two, tmp_path, "method=panet", "dataset.fold_starts=2")
    dataset, protocol = instantiate(config.dataset), instantiate(config.protocol)
    with pytest.raises(UserError, match="no scan to train on"):
        Evaluation(config.method, dataset, protocol).fit(0)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        free = compose("config", overrides=list(overrides))
    assert Evaluation(free.method, dataset, protocol).fit(0) is None


def test_supervoxels_follow_an_organ_through_slices(root):
    scan = dataset_of(root).load("4")
    segments = supervoxels(scale=50.0).of(scan, cache=root / "none")
    assert segments.shape == scan.image.shape
    ids, counts = np.unique(segments[scan.label == 1], return_counts=True)
    organ = segments == ids[counts.argmax()]
    assert ids[counts.argmax()] > 0
    assert (organ & (scan.label == 1)).sum() > 0.9 * organ.sum()
    assert organ.any(axis=(1, 2)).tolist() == [True, True, False]
    assert (segments[:, 0] == 0).all()  # air


def test_supervoxels_are_cached_by_image_and_settings(root, tmp_path):
    scan = dataset_of(root).load("1")
    first = supervoxels().of(scan, tmp_path)
    (path,) = tmp_path.iterdir()
    kept = np.zeros_like(first)
    np.savez(path, segments=kept)
    np.testing.assert_array_equal(supervoxels().of(scan, tmp_path), kept)
    assert supervoxels(sigma=0.8).of(scan, tmp_path).any()
    assert len(list(tmp_path.iterdir())) == 2
    path.write_bytes(path.read_bytes()[:50])  # torn
    np.testing.assert_array_equal(supervoxels().of(scan, tmp_path), first)


def test_given_supervoxels_are_read(root, tmp_path):
    scan = dataset_of(root).load("1")
    given = np.where(scan.image > 0.5, 7, 3).astype(np.int32)
    given[0, :2, :2] = 9  # smaller than any supervoxel
    write_volume(tmp_path / "superpix-MIDDLE_1.nii.gz", given, scan.affine)
    read = supervoxels(files=str(tmp_path)).of(scan, tmp_path)
    assert set(np.unique(read)) == {0, 3, 7}
    np.testing.assert_array_equal(read == 7, given == 7)
    shifted = Scan("1", scan.image[1:], None, scan.spacing, scan.affine)
    with pytest.raises(UserError, match="differs"):
        supervoxels(files=str(tmp_path)).of(shifted, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        supervoxels(files=str(tmp_path / "none"))


def test_real_supervoxels_are_read(chaos_root, tmp_path):
    scan_image = read_volume(chaos_root / "image_1.nii.gz")[0].astype(np.float32)
    scan = Scan("1", scan_image / scan_image.max(), None, (7.7, 1.25, 1.25), np.eye(4))
    read = supervoxels(files=str(chaos_root / "supervoxels"), min_size=400).of(scan, tmp_path)
    assert len(np.unique(read)) > 10


def source_of(root: Path, neighbours: int = 0) -> tuple[EpisodeSource, list[np.ndarray]]:
    views = composed(root, root, "method=panet", f"method.training.views.neighbours={neighbours}")
    scans = [dataset_of(root).load(i) for i in ("4", "5")]
    maps = [supervoxels().of(scan, root / "none") for scan in scans]
    views = instantiate(views.method.training.views)
    return EpisodeSource(zip(scans, maps, strict=True), 48, views, pairs=6, classes=2), maps


@pytest.mark.parametrize("neighbours", [0, 1])
def test_episodes_show_a_supervoxel_in_both_views(root, neighbours):
    source, _ = source_of(root, neighbours)
    episodes = source.draw(np.random.default_rng(0))
    assert episodes.support.shape == episodes.query.shape == (6, 48, 48)
    assert episodes.support_masks.shape == episodes.query_masks.shape == (6, 2, 48, 48)
    assert episodes.support_masks.any((2, 3)).all()
    assert episodes.query_masks.any((2, 3)).float().mean() > 0.9
    assert 0 <= episodes.query.min() <= episodes.query.max() <= 1
    again = source.draw(np.random.default_rng(0))
    assert torch.equal(episodes.query, again.query)
    other = source.draw(np.random.default_rng(1))
    assert not torch.equal(episodes.query, other.query)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_held_strides_keep_the_map_and_the_weights(backbone, tmp_path):
    resnet = getattr(torchvision.models, backbone)(weights=None)
    torch.save({f"backbone.{k}": v for k, v in resnet.state_dict().items()}, tmp_path / "w.pth")
    settings = {"backbone": backbone, "weights": str(tmp_path / "w.pth"), "channels": 8}
    settings |= {"mean": 0.5, "std": 0.25}
    held = Encoder(EncoderSettings(strides=[4, 8, 8, 8], **settings)).eval()
    images = torch.rand(2, 64, 64)
    with torch.no_grad():
        assert held(images)[0].shape == (2, 8, 8, 8)
        two = Encoder(EncoderSettings(strides=[4, 4, 8], **settings), levels=2)(images)
        assert [tuple(level.shape) for level in two] == [(2, 8, 16, 16), (2, 8, 8, 8)]
    if backbone == "resnet50":  # torchvision itself can hold the strides of bottlenecks
        dilated = torchvision.models.resnet50(
            weights=None, replace_stride_with_dilation=[False, True, True]
        )
        dilated.load_state_dict(resnet.state_dict())
        dilated.eval()
        with torch.no_grad():
            grey = ((images - 0.5) / 0.25)[:, None].expand(-1, 3, -1, -1)
            stem = dilated.maxpool(dilated.relu(dilated.bn1(dilated.conv1(grey))))
            expected = dilated.layer4(dilated.layer3(dilated.layer2(dilated.layer1(stem))))
            found = held.stem(grey)
            for stage in held.stages:
                found = stage(found)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vgg"}, "backbone=vgg"),
        ({"strides": [4, 16]}, "strides"),
        ({"strides": []}, "strides"),
        ({"weights": "nowhere.pth"}, "no such file"),
    ],
)
def test_encoders_that_cannot_be_are_refused(change, message):
    settings = {"backbone": "resnet18", "weights": None, "strides": [4], "channels": 8}
    with pytest.raises(UserError, match=message):
        Encoder(EncoderSettings(**{**settings, "mean": 0.5, "std": 0.25, **change}))


def flat_encoder(levels: int = 1) -> Encoder:
    settings = EncoderSettings("resnet18", None, [4, 4], 4, 0.5, 0.25)
    return Encoder(settings, levels)


def two_classes(levels: int = 1):
    """Maps whose left half points one way and right half another, and the mask of the left."""
    maps = torch.zeros(1, 4, 8, 8)
    maps[:, 0, :, :4], maps[:, 1, :, 4:] = 1, 1
    mask = torch.zeros(1, 32, 32)
    mask[:, :, :16] = 1
    return (maps,) * levels, mask


@pytest.mark.parametrize(
    "network",
    [
        PANetNetwork(flat_encoder(), 0.1),
        ALPNetNetwork(flat_encoder(), 0.1, window=2, threshold=0.95),
        ADNetNetwork(flat_encoder(), 0.1, threshold=-10.0),
        QNetNetwork(flat_encoder(2), 0.1, -10.0, 8, [0.9, 0.1]),
    ],
    ids=METHODS,
)
def test_each_comparison_follows_the_features(network):
    maps, mask = two_classes(len(network.encoder.projections))
    flipped = tuple(level.flip(3) for level in maps)
    found = is_foreground(network.compare(maps, mask, flipped))
    expected = torch.zeros(1, 8, 8, dtype=torch.bool)
    expected[:, :, 4:] = True
    assert torch.equal(found, expected)


def test_refinement_follows_the_public_loss():
    """Of the features as logits, those with the prototype in the foreground as their target."""
    network = QNetNetwork(flat_encoder(2), 0.1, -10.0, 8, [0.9, 0.1])
    query = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    prototype, threshold = query[:, :, 2, 3], torch.tensor([[[-10.0]]])

    def loss(prototype: torch.Tensor) -> torch.Tensor:
        foreground = predict(query, prototype, threshold)[:, 1:].detach()
        rebuilt = (1 - foreground) * query + foreground * prototype[:, :, None, None]
        return functional.cross_entropy(query, rebuilt)

    expected = prototype.clone().requires_grad_()
    optimizer = torch.optim.Adam([expected], 0.002)
    for _ in range(5):
        optimizer.zero_grad()
        loss(expected).backward()
        optimizer.step()
    network.refinements, network.refinement_rate = 5, 0.002
    with torch.no_grad():
        refined = network._refined(prototype, query, threshold)
    torch.testing.assert_close(refined, expected.detach(), atol=1e-6, rtol=0)
    assert loss(refined) < loss(prototype)


def test_segmenting_untrained_is_refused(root, tmp_path):
    method = instantiate(composed(root, tmp_path, "method=panet").method)
    with pytest.raises(UserError, match="trained"):
        method.segment(None)


@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_the_learning_rate_rises_then_falls_to_zero(warmup):
    schedule = Schedule(20, 1, 1, 0.1, warmup, 0.0, 1.0)
    rates = [schedule.rate(step) for step in range(20)]
    peak = round(20 * warmup) - 1
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)
    assert max(rates) == pytest.approx(0.1, rel=0.01) and all(rate >= 0 for rate in rates)
    assert rates[-1] == pytest.approx(0.1 if warmup == 1 else 0, abs=1e-9)
