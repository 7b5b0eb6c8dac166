"""What the self-supervised baselines share: training, which can resume, and segmenting after it."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from fsmis.cli import console
from fsmis.data.protocol import Episode
from fsmis.errors import UserError
from fsmis.files import sha256
from fsmis.methods import Method, TrainingScans
from fsmis.methods.trained.episodes import Episodes, EpisodeSource, Supervoxels, Views, resized
from fsmis.methods.trained.fold import FoldTraining, Schedule
from fsmis.methods.trained.network import (
    Encoder,
    EncoderSettings,
    EpisodicNetwork,
    Features,
    is_foreground,
    upsampled,
)
from fsmis.segmenters.network import resolve_device
from fsmis.source import source_hash

Network = TypeVar("Network", bound=EpisodicNetwork)


class EpisodicTraining:
    """Train a network on the scans outside a fold, without any label.

    A training is kept in ``<folder>/<dataset>/<method>/<hash>/fold_<k>/``, where the hash covers
    everything that can change its weights, including code. Runs that differ elsewhere share it; one
    process trains while others wait. Every step draws its episodes from (seed, fold, step), so a
    resumed training ends where an uninterrupted one does.

    Args:
        setting: 1 or 2, see ``TrainingScans``.
        image_size: rows and columns to which slices are resized.
        background_weight: see ``EpisodicNetwork``.
        log_every, checkpoint_every: in steps.
        seed: of weights and episodes.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    """

    def __init__(
        self,
        setting: int,
        image_size: int,
        encoder: EncoderSettings,
        supervoxels: Supervoxels,
        views: Views,
        schedule: Schedule,
        background_weight: float,
        log_every: int,
        checkpoint_every: int,
        folder: str,
        seed: int,
        device: str,
    ) -> None:
        for name, value in {
            "image_size": image_size,
            "schedule.steps": schedule.steps,
            "schedule.pairs": schedule.pairs,
            "schedule.classes": schedule.classes,
            "log_every": log_every,
            "checkpoint_every": checkpoint_every,
        }.items():
            if value < 1:
                raise UserError(f"method.training.{name}={value}: choose 1 or more")
        self.setting = setting
        self.image_size = image_size
        self.encoder = encoder
        self.background_weight = background_weight
        self.device = resolve_device(device)
        self._supervoxels = supervoxels
        self._views = views
        self.schedule = schedule
        self._log_every = log_every
        self._checkpoint_every = checkpoint_every
        self._folder = Path(folder).expanduser()
        self._seed = seed

    def build(self, network: type[Network], levels: int, fold: int, **settings: Any) -> Network:
        """A network with the initial weights of a fold, whose encoder returns ``levels`` levels."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng([self._seed, fold]).integers(2**31)))
            built = network(Encoder(self.encoder, levels), self.background_weight, **settings)
        return built.to(self.device).to(memory_format=torch.channels_last)

    def train(
        self, network: EpisodicNetwork, scans: TrainingScans, name: str, settings: dict[str, Any]
    ) -> pd.DataFrame:
        """Train a network from ``build`` in place, or load what an earlier training left.

        ``settings`` are those of the network that change its training. The log has a row for every
        ``log_every`` steps: ``step``, ``loss`` and its terms, averaged since the previous row.
        """
        fold = FoldTraining(network, self.schedule, self.folder_of(network, scans, name, settings))
        title = f"{name}, fold {scans.fold}"
        lock = fold.folder / "lock"
        with nullcontext() if fold.is_finished() else alone(lock, f"trains {title}"):
            if not fold.load():
                self._complete(fold, scans, title)
                fold.finish(self.pace(settings))
        network.eval().requires_grad_(False)
        return pd.DataFrame(fold.log)

    def folder_of(
        self, network: EpisodicNetwork, scans: TrainingScans, name: str, settings: dict[str, Any]
    ) -> Path:
        parent = self._folder / scans.dataset / name / self._key(type(network), scans, settings)
        return parent / f"fold_{scans.fold}"

    def pace(self, settings: dict[str, Any]) -> str:
        """Twelve hexadecimal digits for the settings that decide how long a step takes."""
        schedule = self.schedule
        parts = [vars(self.encoder), self.image_size, schedule.pairs, schedule.classes]
        return _digest({"network": settings, "other": parts})

    def _complete(self, fold: FoldTraining, scans: TrainingScans, title: str) -> None:
        source = self._source(scans)
        while fold.step < self.schedule.steps:
            rng = np.random.default_rng([self._seed, scans.fold, fold.step])
            fold.advance(_to(source.draw(rng), self.device))
            last = fold.step == self.schedule.steps
            if fold.step % self._log_every == 0 or last:
                row = fold.note()
                console.print(
                    f"training {title}: step {fold.step} of {self.schedule.steps}, "
                    f"loss {row['loss']:.3f}"
                )
            if fold.step % self._checkpoint_every == 0 and not last:
                fold.save()

    def _source(self, scans: TrainingScans) -> EpisodeSource:
        if not scans.scan_ids:
            raise UserError(
                f"{scans.dataset}: fold {scans.fold} leaves no scan to train on; set "
                "dataset.fold_starts to more folds, or add scans"
            )
        cache = self._folder / scans.dataset / "supervoxels"
        segmented = ((scan, self._supervoxels.of(scan, cache)) for scan in scans)
        schedule = self.schedule
        source = EpisodeSource(
            segmented, self.image_size, self._views, schedule.pairs, schedule.classes
        )
        if len(source) == 0:
            raise UserError(
                f"{scans.dataset}: no slice outside fold {scans.fold} can be trained on in setting "
                f"{self.setting}; test fewer of dataset.organs, as organs=[RK,LK], or lower "
                "method.training.supervoxels.min_size where no segment is that large"
            )
        return source

    def _key(
        self, network: type[EpisodicNetwork], scans: TrainingScans, settings: dict[str, Any]
    ) -> str:
        weights = self.encoder.weights
        known = {
            "code": source_hash(EpisodicTraining, network),
            "scans": scans.fingerprint(),
            "network": settings,
            "encoder": {
                **vars(self.encoder),
                "weights": weights and sha256(Path(weights).expanduser()),
            },
            "supervoxels": self._supervoxels.identity(scans.scan_ids),
            "views": asdict(self._views),
            "schedule": asdict(self.schedule),
            "other": [self.setting, self.image_size, self.background_weight, self._seed],
        }
        return _digest(known)


def _to(episodes: Episodes, device: torch.device) -> Episodes:
    move: Callable[[Tensor], Tensor] = lambda tensor: tensor.to(device)  # noqa: E731
    return Episodes(*map(move, vars(episodes).values()))


def _digest(known: dict[str, Any]) -> str:
    text = json.dumps(known, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{value!r} is no setting")


POLL_S = 1.0  # between two looks at a lock that another process holds


@contextmanager
def alone(lock_file: Path, does: str) -> Iterator[None]:
    """Let one process at a time into the block; one that waits says so.

    The operating system's lock is released when its process ends, even if killed; the empty file
    stays. On NFS it also holds between machines, but the lock of a crashed machine lasts until the
    server notices, and other machines may see what was written inside seconds later.

    ``does`` describes a process in the block, as in "another process that trains fold 0".
    """
    lock = FileLock(lock_file, fallback_to_soft=False)
    # a file system without locks, as of some clusters: all go in, as each file is written whole
    with suppress(OSError):
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            console.print(f"waiting for another process that {does}")
            lock.acquire(poll_interval=POLL_S)
    try:
        yield
    finally:
        lock.release()


class EpisodicMethod(Method):
    """Encode every slice once and compare every (organ, query slice) as an episode of its own.

    ``batch_size`` is the number of slices encoded, and of episodes compared, in one batch.
    """

    def __init__(self, training: EpisodicTraining, batch_size: int) -> None:
        self.training = training
        self.setting = training.setting
        self._at_once = batch_size
        self._network: EpisodicNetwork | None = None

    @abstractmethod
    def train(self, scans: TrainingScans) -> tuple[EpisodicNetwork, pd.DataFrame]:
        """Train the network of a fold; returned in eval mode, with the log of its training."""

    def fit(self, scans: TrainingScans) -> pd.DataFrame:
        self._network, log = self.train(scans)
        return log

    @torch.no_grad()
    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        if self._network is None:
            raise UserError(f"{type(self).__name__} is trained: python -m fsmis run does that")
        supports, queries = episode.support_slices, episode.query_slices
        support = self._encode(self._network, episode.support.image[supports])
        query = self._encode(self._network, episode.query.image[queries])
        segmented = {}
        for organ, task in episode.organs.items():
            size = self.training.image_size
            masks = resized(task.support_masks.astype(np.float32), size).to(self.training.device)
            rows = np.searchsorted(queries, task.query_slices)
            parts = np.searchsorted(supports, task.support_slices)[task.part]
            found = []
            for start in range(0, len(rows), self._at_once):
                batch = slice(start, start + self._at_once)
                logits = self._network.compare(
                    tuple(level[parts[batch]] for level in support),
                    masks[task.part[batch]],
                    tuple(level[rows[batch]] for level in query),
                )
                found.append(is_foreground(upsampled(logits, episode.query.image.shape[-2:])).cpu())
            segmented[organ] = torch.cat(found).numpy()
        return segmented

    def _encode(self, network: EpisodicNetwork, images: np.ndarray) -> Features:
        slices = resized(images, self.training.image_size).to(self.training.device)
        batches = [network.encoder(batch) for batch in slices.split(self._at_once)]
        return tuple(torch.cat(level) for level in zip(*batches, strict=True))
