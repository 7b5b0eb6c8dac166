"""Training of the embedded checkpoint, on a tiny setting: it learns, stops and goes on."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from fsmis.segmenters.mini.bodies import (
    TISSUE,
    Draw,
    OrganLabels,
    Organs,
    SyntheticSettings,
)
from fsmis.segmenters.mini.objective import (
    BACKGROUND,
    FOREGROUND,
    NO_POINT,
    UPPER_LEFT,
    Prediction,
    draw_points,
    loss_of,
    predict,
    total_loss,
)
from fsmis.segmenters.mini.rendering import render
from fsmis.segmenters.mini.synthetic import (
    draw_views,
    points_of,
    sample_bodies,
    tissue_labels,
)
from fsmis.segmenters.mini.train import SyntheticSteps, Trainer, learning_rate, train
from fsmis.segmenters.sam2 import Sam2

CONF = Path(__file__).parents[2] / "conf"
TINY = (
    "steps=16",
    "stages=[{image_size: 64, share: 0.75}, {image_size: 96, share: 0.25}]",
    "batch_size=2",
    "log_every=8",
    "validation_batches=1",
    "workers=0",
    "warmup=2",
    "cooldown=0.25",
    "device=cpu",
    "bfloat16=false",  # slow on many CPUs; one test has it
)


def settings(out: Path, *overrides: str):
    with initialize_config_dir(str(CONF / "training"), version_base="1.3"):
        return compose("sam2_mini", overrides=[*TINY, f"out={out}", *overrides])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("training")
    train(settings(out))
    return out


def test_a_run_leaves_weights_log_and_curves(trained):
    log = pd.read_csv(trained / "log.csv")
    assert log["step"].tolist() == [8, 12, 16]  # every 8 steps, and where a stage ends
    assert log["image_size"].tolist() == [64, 64, 96]
    assert (trained / "curves.png").stat().st_size > 1000
    mini = OmegaConf.to_container(OmegaConf.load(CONF / "segmenter" / "sam2_mini.yaml"))
    del mini["_target_"]
    Sam2(**mini | {"checkpoint": str(trained / "weights.safetensors"), "device": "cpu", "seed": 0})


def test_a_stopped_run_goes_on_as_if_it_had_not(trained, tmp_path):
    config = settings(tmp_path)
    trainer = Trainer(config)
    steps = SyntheticSteps(config, 64, config.seed)
    for step in range(5):
        trainer.train_step(steps[step])
    trainer.save()
    train(config)
    whole, stopped = (
        torch.load(out / "state.pt", weights_only=True)["model"] for out in (trained, tmp_path)
    )
    for name, value in whole.items():
        torch.testing.assert_close(stopped[name], value, rtol=1e-3, atol=1e-5)


def test_loss_falls_on_a_repeated_batch(tmp_path):
    config = settings(tmp_path, "learning_rate=0.002")
    trainer = Trainer(config)
    batch = SyntheticSteps(config, 64, config.seed)[0]
    losses = [trainer.train_step(batch) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_every_part_of_the_network_learns(tmp_path):
    config = settings(tmp_path, "frame_shares=[0, 1]")
    trainer = Trainer(config)
    batch = SyntheticSteps(config, 64, config.seed)[0]
    assert batch.images.shape[1] == 3  # two supports and the query
    total_loss(predict(trainer.segmenter, batch, torch.Generator(), 1.0), config).backward()
    model = trainer.segmenter.model
    for part in (
        "image_encoder.trunk",
        "memory_attention",
        "memory_encoder",
        "sam_mask_decoder",
        "sam_prompt_encoder.point_embeddings",
    ):
        gradients = [p.grad for n, p in model.named_parameters() if n.startswith(part)]
        assert any(g is not None and g.abs().max() > 0 for g in gradients), part


def test_the_rate_follows_steps_or_the_clock(tmp_path):
    by_steps = settings(tmp_path)
    rates = [learning_rate(step, step / 16, by_steps) for step in range(16)]
    assert rates[:3] == [0.5 * by_steps.learning_rate, *[by_steps.learning_rate] * 2]
    assert rates[11] == by_steps.learning_rate and rates[14] == 0.5 * by_steps.learning_rate
    trainer = Trainer(settings(tmp_path, "minutes=2"))
    trainer.start -= 90
    assert trainer.done == pytest.approx(0.75, abs=0.05)


def test_a_run_of_minutes_ends_by_itself_and_goes_on_for_as_many_more(tmp_path):
    steps = []
    for _ in range(2):
        stages = "stages=[{image_size: 64, share: 1.0}]"
        train(settings(tmp_path, "minutes=0.05", stages, "bfloat16=true"))
        steps.append(torch.load(tmp_path / "state.pt", weights_only=True)["step"])
    assert 0 < steps[0] < steps[1]
    assert pd.read_csv(tmp_path / "log.csv")["step"].iloc[-1] == steps[1]


def test_the_mask_of_an_absent_target_weighs_little_and_both_scores_tell(tmp_path):
    config = settings(tmp_path)
    truth = torch.zeros(2, 1, 8, 8)
    truth[0, :, 2:6, 2:6] = 1

    def loss(logits: torch.Tensor, score: list[float], iou: list[float]) -> float:
        columns = torch.tensor(iou)[:, None], torch.tensor(score)[:, None]
        return float(loss_of(Prediction(logits, *columns, truth), config))

    right = 16 * truth - 8
    wrong_absent, wrong_present = right.clone(), right.clone()
    wrong_absent[1], wrong_present[0] = right[0], right[1]
    sure, true_iou = [8.0, -8.0], [1.0, 0.0]
    best = loss(right, sure, true_iou)
    assert best < 0.05
    assert best + 0.1 < loss(wrong_absent, sure, true_iou) < loss(wrong_present, sure, true_iou) / 3
    assert loss(right, [8.0, 8.0], true_iou) > best + 1
    assert loss(right, sure, [1.0, 1.0]) > best + 0.1


def data(**changes: float) -> SyntheticSettings:
    shipped = OmegaConf.to_container(OmegaConf.load(CONF / "training" / "sam2_mini.yaml").data)
    return SyntheticSettings(**shipped | changes)


def bodies(frames: int, seed: int = 0, **changes: float):
    generator = torch.Generator().manual_seed(seed)
    return sample_bodies(data(**changes), 6, frames, 64, generator)


def test_bodies_are_seeded_and_in_range():
    first, again, other = bodies(2), bodies(2), bodies(2, seed=1)
    assert torch.equal(first.images, again.images) and torch.equal(first.masks, again.masks)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (6, 2, 64, 64) and first.masks.shape == (6, 4, 2, 64, 64)
    assert first.images.min() >= 0 and first.images.max() <= 1 and first.images.std() > 0.05


def test_targets_show_in_the_support_and_differ_between_frames():
    masks = torch.cat([bodies(3, seed).masks for seed in range(8)]).flatten(0, 1).float()
    area = masks.mean((2, 3))
    fits = (area[:, 0] > 0.001) & (area[:, 0] < 0.8)
    assert fits.float().mean() > 0.92  # now and then a body has fewer targets that fit than asked
    assert (masks[:, 0] != masks[:, 2]).any(2).any(1).float().mean() > 0.95


def test_a_third_of_the_targets_are_absent_and_sizes_spread():
    masks = torch.cat([bodies(2, seed).masks for seed in range(20)]).flatten(0, 1).float()
    support, query = masks.mean((2, 3)).unbind(1)
    assert 0.27 < (query < 0.00025).float().mean() < 0.5
    low, high = support.quantile(torch.tensor([0.1, 0.95])).tolist()
    assert low < 0.004 and high > 0.15


def test_a_misplaced_crop_shows_the_twin_in_place_of_the_target():
    """Where targets that the query lacks are preferred, there are more of them in such crops."""
    absent = {}
    for misplaced in (0.0, 1.0):
        all_cut = {"cropped": 1.0, "misplaced": misplaced, "beyond": 0.0, "elsewhere": 0.0}
        masks = [bodies(2, seed, absent=0.9, **all_cut).masks[:, 0, 1] for seed in range(10)]
        absent[misplaced] = (torch.cat(masks).float().mean((1, 2)) < 0.00025).float().mean()
    assert absent[1.0] > 0.1 + absent[0.0]


def test_frames_of_a_body_agree_where_nothing_moves():
    still = dict.fromkeys(
        ("rotation", "scaling", "shift", "displacement", "height_change", "shape_change"), 0.0
    )
    still |= dict.fromkeys(("beyond", "elsewhere", "cropped", "field_of_view"), 0.0)
    still |= dict.fromkeys(("tissue_change", "girth_change"), 0.0)
    masks = bodies(2, **still).masks
    assert torch.equal(masks[:, :, 0], masks[:, :, 1])


def test_patients_share_their_organs_and_not_their_tissues():
    still = dict.fromkeys(
        ("rotation", "scaling", "shift", "displacement", "height_change", "shape_change"), 0.0
    )
    still |= dict.fromkeys(("beyond", "elsewhere", "cropped", "field_of_view"), 0.0)
    still |= {"girth_change": 0.0, "tissues": 8}
    settings = data(**still, tissue_change=1.5)
    draw = Draw(torch.Generator().manual_seed(0))
    organs = Organs(settings, 6, 2, draw)
    points = points_of(settings, draw_views(settings, organs, 2, draw), 64, draw)
    tissues = tissue_labels(settings, points, draw)
    of_tissue = (tissues >= TISSUE).all(1)
    assert (tissues[:, 0] != tissues[:, 1])[of_tissue].float().mean() > 0.2
    labels = tissues.clone()
    organ_labels = organs.paint(labels, points)
    organ = labels >= organ_labels.first
    assert torch.equal(organ[:, 0], organ[:, 1]) and organ.any()


def values_of_labels(seed: int, **changes: float) -> Tensor:
    """The rendered value of every label, each a square, of organs that are all crescents beside a
    ring; float32 ``[B, L]``."""
    clean = {"ct": 0.0, "texture": 0.0, "vessels": 0.0, "noise": 0.0, "bias_field": 0.0}
    clean |= {"gamma": 0.0, "contrast_change": 0.0} | changes
    batch, organs = 16, 10
    first, side = TISSUE + 8, 8
    every = torch.ones(batch, organs, dtype=torch.bool)
    count = first + 2 * organs
    square = torch.arange(36).clamp(max=count - 1).view(6, 6)
    square = square.repeat_interleave(side, 0).repeat_interleave(side, 1)
    labels = square.expand(batch, 1, -1, -1)
    shown = OrganLabels(first, has_core=every, twin=~every, crescent=every)
    draw = Draw(torch.Generator().manual_seed(seed))
    image = render(data(**clean), labels, shown, draw)
    return image[:, 0, side // 2 :: side, side // 2 :: side].flatten(1)[:, :count]


def test_a_crescent_is_as_bright_as_the_core_of_its_ring():
    first = TISSUE + 8
    for blood, least, most in ((0.0, 0.05, 1.0), (1.0, 0.0, 0.02)):
        values = values_of_labels(0, blood=blood)
        apart = (values[:, first] - values[:, first + 3]).abs().median()
        assert least <= apart <= most


def test_few_materials_make_many_organs_alike():
    def to_nearest(materials: float) -> Tensor:
        values = values_of_labels(1, blood=0.0, materials=materials)[:, TISSUE:]
        apart = (values[:, :, None] - values[:, None]).abs()
        return (apart < 0.05).float().mean()

    assert to_nearest(1.0) > 1.3 * to_nearest(0.0)


def test_points_and_boxes_lie_on_their_masks():
    masks = torch.zeros(64, 32, 32)
    masks[:, 8:20, 4:12] = 1
    masks[0] = 0
    coordinates, labels = draw_points(masks, torch.Generator().manual_seed(0))
    assert (labels[0] == NO_POINT).all()
    boxes = (labels == UPPER_LEFT).any(1)
    assert 16 < boxes.sum() < 48
    assert (coordinates[boxes, 0].mean(0) - torch.tensor([4.0, 8.0])).abs().max() < 0.5
    assert (coordinates[boxes, 1].mean(0) - torch.tensor([12.0, 20.0])).abs().max() < 0.5
    for point, label in ((FOREGROUND, 1), (BACKGROUND, 0)):
        row, place = (labels == point).nonzero(as_tuple=True)
        x, y = coordinates[row, place].long().unbind(-1)
        assert len(row) and (masks[row, y, x] == label).all()
