"""Train the embedded checkpoint on synthetic pairs: ``python -m fsmis.segmenters.mini.train``.

Every step is one batch of random bodies from a seed of its own, so a stopped run resumes from its
last checkpoint with the same pairs. Settings: ``conf/training/sam2_mini.yaml``.
"""

from __future__ import annotations

import csv
import itertools
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from fsmis.files import write_figure
from fsmis.segmenters.mini.bodies import SyntheticSettings
from fsmis.segmenters.mini.objective import predict, total_loss
from fsmis.segmenters.mini.synthetic import SyntheticBatch, sample_bodies
from fsmis.segmenters.sam2 import Sam2

COLUMNS = ("validation_dice", "validation_presence_auc")
CONF = str(Path(__file__).parents[3] / "conf" / "training")


class SyntheticSteps(Dataset[SyntheticBatch]):
    """The batch of every training step, drawn only from (seed, step)."""

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
class Validation:
    """Scores on synthetic bodies that no training step draws.

    ``dice`` is the mean hard Dice of the targets that the query shows, ``presence`` the area under
    the ROC curve of the object score, present against absent.
    """

    dice: float
    presence: float


@torch.no_grad()
def validate(segmenter: Sam2, config: DictConfig) -> Validation:
    """Score a segmenter on the same held-out batches every time."""
    held_out = SyntheticSteps(config, segmenter.image_size, config.seed + 1)
    dice, scores, present = [], [], []
    for index in range(config.validation_batches):
        generator = torch.Generator().manual_seed(index)
        prediction = predict(segmenter, held_out[index], generator).by_memory
        mask, truth = prediction.logits > 0, prediction.truth > 0.5
        overlap = (mask & truth).sum((1, 2, 3))
        total = mask.sum((1, 2, 3)) + truth.sum((1, 2, 3))
        dice.append((2 * overlap / total.clamp(min=1))[prediction.present])
        scores.append(prediction.object_score[:, 0])
        present.append(prediction.present)
    score, shown = torch.cat(scores), torch.cat(present)
    above = (score[shown][:, None] > score[~shown]).float().mean()
    return Validation(float(torch.cat(dice).mean()), float(above))


def learning_rate(step: int, done: float, config: DictConfig) -> float:
    """Linear warm-up over the first steps, constant, then linear to zero; ``done`` is the share of
    the run that is over."""
    warm = min(1.0, (step + 1) / config.warmup)
    return config.learning_rate * warm * min(1.0, (1 - done) / config.cooldown)


class Trainer:
    """Network, optimiser and averaged weights of a run, kept in ``<out>/state.pt``."""

    def __init__(self, config: DictConfig):
        self.config = config
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self._attach(instantiate(config.segmenter, image_size=config.stages[0].image_size))
        self.step = 0
        self.start = time.monotonic()
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
        """A segmenter with the averaged weights, the ones that are shipped."""
        size = self.segmenter.image_size
        segmenter: Sam2 = instantiate(self.config.segmenter, image_size=size, checkpoint="random")
        segmenter.model.load_state_dict(self.average.module.state_dict())
        return segmenter

    @property
    def done(self) -> float:
        """Share of the run that is over, by its minutes in this process if set, else its steps."""
        if self.config.minutes is not None:
            return min(1.0, (time.monotonic() - self.start) / (60 * self.config.minutes))
        return float(self.step / self.config.steps)

    def train_step(self, batch: SyntheticBatch) -> float:
        """One optimiser step, in bfloat16 over float32 weights if configured; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.done, self.config)
        self.segmenter.model.train()
        generator = torch.Generator().manual_seed(self.config.seed * 10_000_000 + self.step)
        device = self.segmenter.device.type
        # On a CPU the fused attention is slower backwards than plain matrix products.
        attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
        bfloat16 = torch.autocast(device, torch.bfloat16, enabled=self.config.bfloat16)
        with bfloat16, attention:
            predictions = predict(self.segmenter, batch, generator, self.config.predicted_memory)
        loss = total_loss(predictions, self.config)
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
        scores = validate(self.averaged(), self.config)
        path = self.out / "log.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "pairs", "image_size", "loss", *COLUMNS])
            pairs = self.step * self.config.batch_size * self.config.data.targets
            size = self.segmenter.image_size
            row = [f"{scores.dice:.4f}", f"{scores.presence:.4f}"]
            writer.writerow([self.step, pairs, size, f"{loss:.4f}", *row])
        plot_curves(path, self.out / "curves.png")


def train(config: DictConfig) -> Path:
    """Train to the end, resuming what ``config.out`` holds; returns the file of the weights."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    trainer = Trainer(config)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=1.0)
        until = 0.0
        for stage in config.stages:
            until += stage.share
            if trainer.done >= until - 1e-9:
                continue
            if trainer.segmenter.image_size != stage.image_size:
                trainer.resize(stage.image_size)
            steps = SyntheticSteps(config, stage.image_size, config.seed)
            loader = DataLoader(
                steps,
                batch_size=None,
                sampler=itertools.count(trainer.step),
                num_workers=config.workers,
            )
            running = 0.0
            for batch in loader:
                loss = trainer.train_step(batch)
                running = loss if running == 0 else 0.98 * running + 0.02 * loss
                progress.update(
                    task,
                    completed=trainer.done,
                    description=f"step {trainer.step}, {stage.image_size} px, loss {running:.3f}",
                )
                ended = trainer.done >= until - 1e-9
                if trainer.step % config.log_every == 0 or ended:
                    trainer.save()
                    trainer.log(running)
                if ended:
                    break
    return trainer.out / "weights.safetensors"


def plot_curves(log: Path, path: Path) -> None:
    rows = pd.read_csv(log)
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for size, stage in rows.groupby("image_size"):
        seen = stage["pairs"] / 1000
        left.plot(seen, stage["loss"], label=f"{size} px")
        right.plot(seen, 100 * stage["validation_dice"], label=f"{size} px")
    left.set(xlabel="training targets, thousands", ylabel="loss")
    right.set(xlabel="training targets, thousands", ylabel="Dice on held-out bodies (%)")
    right.legend()
    write_figure(path, figure, dpi=120)


@hydra.main(config_path=CONF, config_name="sam2_mini", version_base="1.3")
def main(config: DictConfig) -> None:
    print(train(config))


if __name__ == "__main__":
    main()
