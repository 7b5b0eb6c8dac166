"""Train the embedded checkpoint on synthetic pairs: ``python -m fsmis.training.sam2_mini``.

Every step is one batch of random bodies, drawn from a seed of its own, so a run that is stopped
goes on where its last checkpoint was and sees the pairs it would have seen. Settings and their
meaning: ``conf/training/sam2_mini.yaml``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from fsmis.segmenters.sam2 import Sam2
from fsmis.training.curves import plot_curves
from fsmis.training.points import draw_points
from fsmis.training.settings import SyntheticSettings
from fsmis.training.synthetic import SyntheticBatch, sample_bodies

CONF = str(Path(__file__).parents[2] / "conf" / "training")


class SyntheticSteps(Dataset[SyntheticBatch]):
    """The batch of every training step, drawn from (seed, step) alone."""

    def __init__(self, config: DictConfig, image_size: int, seed: int):
        self.settings = SyntheticSettings(**config.data)
        self.config = config
        self.image_size = image_size
        self.seed = seed

    def __getitem__(self, step: int) -> SyntheticBatch:
        generator = torch.Generator().manual_seed(self.seed * 10_000_000 + step)
        share = torch.tensor([float(share) for share in self.config.frame_shares])
        supports = 1 + int(torch.multinomial(share, 1, generator=generator))
        batch = self.config.batch_size
        return sample_bodies(self.settings, batch, supports + 1, self.image_size, generator)


@dataclass(frozen=True)
class Prediction:
    """Quarter-resolution logits, predicted IoU and object score of B * K rows, and their truth."""

    logits: Tensor
    iou: Tensor
    object_score: Tensor
    truth: Tensor  # share of each quarter-resolution pixel that is foreground


@dataclass(frozen=True)
class Predictions:
    """The last frame of every body, prompted by the frames before it and by points on itself."""

    by_memory: Prediction
    by_points: Prediction


def predict(segmenter: Sam2, batch: SyntheticBatch, generator: torch.Generator) -> Predictions:
    """Segment the last frame of every body; the points are drawn from ``generator``."""
    images, masks = batch.images.to(segmenter.device), batch.masks.to(segmenter.device)
    count, frames = images.shape[:2]
    targets = masks.shape[1]
    pixels = (images.flatten(0, 1)[:, None] - segmenter.mean) / segmenter.std
    features = segmenter.features(pixels.contiguous(memory_format=torch.channels_last))
    body = torch.arange(count, device=images.device).repeat_interleave(targets) * frames
    prompts = masks.flatten(0, 1).float()
    memories = [
        segmenter.memory(features[body + frame], prompts[:, frame, None])
        for frame in range(frames - 1)
    ]
    query, truth = features[body + frames - 1], prompts[:, -1, None]
    decoded = segmenter.decode(query, memories)
    small = F.adaptive_avg_pool2d(truth, decoded[0].shape[-1])
    coordinates, labels = draw_points(truth[:, 0].cpu(), generator)
    pointed = segmenter.decode_points(
        query, coordinates.to(segmenter.device), labels.to(segmenter.device)
    )
    return Predictions(Prediction(*decoded, small), Prediction(*pointed, small))


def total_loss(predictions: Predictions, config: DictConfig) -> Tensor:
    """The loss of both kinds of prompts."""
    by_memory = loss_of(predictions.by_memory, config)
    return by_memory + config.loss.points * loss_of(predictions.by_points, config)


def loss_of(prediction: Prediction, config: DictConfig) -> Tensor:
    """Cross-entropy, soft Dice, and small terms for object presence and the predicted IoU."""
    truth, probability = prediction.truth, prediction.logits.sigmoid()
    present = (truth.amax((1, 2, 3)) > 0.5).float()[:, None]
    crossed = F.binary_cross_entropy_with_logits(prediction.logits, truth)
    overlap = (probability * truth).sum((1, 2, 3))
    total = probability.sum((1, 2, 3)) + truth.sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    presence = F.binary_cross_entropy_with_logits(prediction.object_score, present)
    iou = overlap / (total - overlap + 1e-6)
    iou_error = F.mse_loss(prediction.iou[:, 0], iou.detach())
    weight = config.loss
    return (
        weight.cross_entropy * crossed
        + dice.mean()
        + weight.presence * presence
        + weight.iou * iou_error
    )


@torch.no_grad()
def validate(segmenter: Sam2, config: DictConfig) -> float:
    """Mean hard Dice of present targets on synthetic bodies no training step draws."""
    held_out = SyntheticSteps(config, segmenter.image_size, config.seed + 1)
    dice = []
    for index in range(config.validation_batches):
        generator = torch.Generator().manual_seed(index)
        prediction = predict(segmenter, held_out[index], generator).by_memory
        mask, truth = prediction.logits > 0, prediction.truth > 0.5
        overlap = (mask & truth).sum((1, 2, 3))
        total = mask.sum((1, 2, 3)) + truth.sum((1, 2, 3))
        present = truth.any(3).any(2).any(1)
        dice.append((2 * overlap / total.clamp(min=1))[present])
    return float(torch.cat(dice).mean())


def learning_rate(step: int, config: DictConfig) -> float:
    """Linear warm-up, constant, linear to zero over the last ``cooldown`` steps."""
    total = sum(stage.steps for stage in config.stages)
    warm = min(1.0, (step + 1) / config.warmup)
    return config.learning_rate * warm * min(1.0, (total - step) / config.cooldown)


class Trainer:
    """Network, optimiser and averaged weights of a run, kept in ``<out>/state.pt``."""

    def __init__(self, config: DictConfig):
        self.config = config
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self._attach(instantiate(config.segmenter, image_size=config.stages[0].image_size))
        self.step = 0
        if (self.out / "state.pt").exists():
            state = torch.load(self.out / "state.pt", weights_only=True)
            self._load(state)
            self.step = state["step"]

    def _attach(self, segmenter: Sam2) -> None:
        self.segmenter = segmenter
        segmenter.model.requires_grad_(True)
        self.average = AveragedModel(
            segmenter.model, multi_avg_fn=get_ema_multi_avg_fn(self.config.average)
        )
        self.optimizer = torch.optim.AdamW(
            segmenter.model.parameters(), weight_decay=self.config.weight_decay, betas=(0.9, 0.98)
        )

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.segmenter.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.segmenter.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def resize(self, image_size: int) -> None:
        """Go on at another image size; no weight depends on it."""
        state = self._state()
        self._attach(instantiate(self.config.segmenter, image_size=image_size, checkpoint="random"))
        self._load(state)

    def averaged(self) -> Sam2:
        """A segmenter with the averaged weights, which are the ones that are shipped."""
        size = self.segmenter.image_size
        segmenter: Sam2 = instantiate(self.config.segmenter, image_size=size, checkpoint="random")
        segmenter.model.load_state_dict(self.average.module.state_dict())
        return segmenter

    def train_step(self, batch: SyntheticBatch) -> float:
        """One optimiser step; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        self.segmenter.model.train()
        generator = torch.Generator().manual_seed(self.config.seed * 10_000_000 + self.step)
        loss = total_loss(predict(self.segmenter, batch, generator), self.config)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.segmenter.model.parameters(), self.config.gradient_norm)
        self.optimizer.step()
        self.average.update_parameters(self.segmenter.model)
        self.step += 1
        return loss.item()

    def save(self) -> None:
        """Write the state to resume from, and the averaged weights as half-precision tensors."""
        torch.save({**self._state(), "step": self.step}, self.out / "state.pt.tmp")
        (self.out / "state.pt.tmp").replace(self.out / "state.pt")
        weights = {
            name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in self.average.module.state_dict().items()
        }
        save_file(weights, self.out / "weights.safetensors.tmp")
        (self.out / "weights.safetensors.tmp").replace(self.out / "weights.safetensors")

    def log(self, loss: float) -> None:
        """Append loss and validation Dice to ``log.csv`` and redraw ``curves.png``."""
        dice = validate(self.averaged(), self.config)
        path = self.out / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "pairs", "image_size", "loss", "validation_dice"])
            pairs = self.step * self.config.batch_size * self.config.data.targets
            size = self.segmenter.image_size
            writer.writerow([self.step, pairs, size, f"{loss:.4f}", f"{dice:.4f}"])
        plot_curves(path, self.out / "curves.png")


def train(config: DictConfig) -> Path:
    """Train to the end, resuming what ``config.out`` holds; returns the file of the weights."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    trainer = Trainer(config)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    total = sum(stage.steps for stage in config.stages)
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=total, completed=trainer.step)
        end = 0
        for stage in config.stages:
            end += stage.steps
            if trainer.step >= end:
                continue
            if trainer.segmenter.image_size != stage.image_size:
                trainer.resize(stage.image_size)
            steps = SyntheticSteps(config, stage.image_size, config.seed)
            loader = DataLoader(
                steps,
                batch_size=None,
                sampler=range(trainer.step, end),
                num_workers=config.workers,
                persistent_workers=False,
            )
            running = 0.0
            for batch in loader:
                loss = trainer.train_step(batch)
                running = loss if running == 0 else 0.98 * running + 0.02 * loss
                progress.update(
                    task, completed=trainer.step, description=f"{stage.image_size} px {running:.3f}"
                )
                if trainer.step % config.log_every == 0 or trainer.step == total:
                    trainer.save()
                    trainer.log(running)
    return trainer.out / "weights.safetensors"


@hydra.main(config_path=CONF, config_name="sam2_mini", version_base="1.3")
def main(config: DictConfig) -> None:
    """Hydra's entry point."""
    print(train(config))


if __name__ == "__main__":
    main()
