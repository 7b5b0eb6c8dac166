"""The training of one fold: network, optimiser and log, and the files that keep them."""

from __future__ import annotations

import io
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save

from fsmis.files import author, write_atomic
from fsmis.methods.trained.network import Episodes, EpisodicNetwork
from fsmis.segmenters.checkpoints import read_tensors


@dataclass(frozen=True)
class Schedule:
    """Length and pace of a training with AdamW; see ``conf/episodic/default.yaml``.

    Attributes:
        pairs: pairs of slices in a step.
        classes: pseudo-classes of each pair.
        learning_rate: the highest.
        warmup: fraction of the steps over which it rises from zero; then it falls as a half cosine.
        gradient_norm: larger gradients are scaled down to it.
    """

    steps: int
    pairs: int
    classes: int
    learning_rate: float
    warmup: float
    weight_decay: float
    gradient_norm: float

    def rate(self, step: int) -> float:
        done = (step + 1) / self.steps
        if done <= self.warmup:
            return self.learning_rate * done / self.warmup
        falling = (done - self.warmup) / (1 - self.warmup)
        return self.learning_rate * (1 + math.cos(math.pi * falling)) / 2


TIMING = "timing.json"


class FoldTraining:
    """Network, optimiser and log of one fold's training, and their files.

    ``folder`` holds ``state.pt`` to resume from until the training is finished, then
    ``weights.safetensors`` and ``timing.json``; ``log.csv`` holds the losses.
    """

    def __init__(self, network: EpisodicNetwork, schedule: Schedule, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.step = 0
        self.log: list[dict[Any, float]] = []
        self._since: list[dict[str, float]] = []  # losses since the last row of the log
        self._schedule = schedule
        self._optimizer = torch.optim.AdamW(
            network.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self._begin = 0, time.perf_counter()  # step and time from which this process trains

    def is_finished(self) -> bool:
        return all((self.folder / name).is_file() for name in ("weights.safetensors", "log.csv"))

    def load(self) -> bool:
        """Resume from what the folder holds; True where the training is finished."""
        if self.is_finished():
            self.network.load_state_dict(read_tensors(self.folder / "weights.safetensors"))
            self.log = pd.read_csv(self.folder / "log.csv").to_dict("records")
            return True
        state = self.folder / "state.pt"
        if state.is_file():
            kept = read_tensors(state)
            self.network.load_state_dict(kept["network"])
            self._optimizer.load_state_dict(kept["optimizer"])
            self.step, self.log, self._since = kept["step"], kept["log"], kept["since"]
        self._begin = self.step, time.perf_counter()
        return False

    def advance(self, episodes: Episodes) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.rate(self.step)
        self.network.train()
        terms = self.network.losses(episodes)
        loss = torch.stack(list(terms.values())).sum()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self._schedule.gradient_norm)
        self._optimizer.step()
        self.step += 1
        self._since.append({"loss": loss.item(), **{name: t.item() for name, t in terms.items()}})

    def note(self) -> dict[Any, float]:
        """Append the mean losses since the last row to the log; returns the row."""
        row: dict[Any, float] = {"step": self.step, **pd.DataFrame(self._since).mean().to_dict()}
        self.log.append(row)
        self._since = []
        write_atomic(self.folder / "log.csv", pd.DataFrame(self.log).to_csv(index=False).encode())
        return row

    def save(self) -> None:
        state = io.BytesIO()
        torch.save(
            {
                "network": self.network.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "step": self.step,
                "log": self.log,
                "since": self._since,
            },
            state,
        )
        write_atomic(self.folder / "state.pt", state.getvalue())

    def finish(self, pace: str) -> None:
        """Write the weights and the time this process took, and delete the state to resume from.

        ``pace`` identifies the settings that decide how long a step takes.
        """
        step, began = self._begin
        took = {"steps": self.step - step, "seconds": time.perf_counter() - began}
        timing = {"pace": pace, **took, "host": author()["host"]}
        write_atomic(self.folder / TIMING, json.dumps(timing).encode())
        weights = {name: t.cpu().contiguous() for name, t in self.network.state_dict().items()}
        write_atomic(self.folder / "weights.safetensors", save(weights))
        (self.folder / "state.pt").unlink(missing_ok=True)
