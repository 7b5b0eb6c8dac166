"""What runs cost before they run: images to encode and missing trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from fsmis.methods.base import TrainingScans
from fsmis.methods.trained.fold import TIMING, FoldTraining
from fsmis.methods.trained.network import EpisodicNetwork
from fsmis.methods.trained.training import EpisodicTraining
from fsmis.pipeline.matching import Matcher
from fsmis.runs.records import read_json

Served = Mapping[int, list[int]]  # the query slices that each support slice serves


def encoder_images(method: DictConfig, served: Mapping[str, Served], beyond: int = 0) -> int:
    """Most images of one episode: distinct query slices, and support slices or their copies.

    Zoom adds the same again for each organ and pass. Without zoom, the count is exact for a matcher
    that reads the encoder's features, and so all copies. Other matchers skip copies that no query
    slice matches, and zoom skips organs that were not found or share their crops, which only a run
    can tell. What a feature cache already holds is not subtracted.

    ``served`` is by organ (``served_slices`` of its task); ``beyond`` counts the slices of the
    whole support, where an episode covers every slice of the query. 0 without a segmenter.
    """
    if "segmenter" not in method:
        return 0
    together: dict[int, set[int]] = {}
    for of_organ in served.values():
        for z, slices in of_organ.items():
            together.setdefault(z, set()).update(slices)
    whole = {z: sorted(slices) for z, slices in together.items()}
    images = _images(method, whole)
    if "extent" in method and method.extent.when == "whole_volume" and method.extent.place:
        images += beyond
    if "zoom" in method:
        images += method.zoom.passes * sum(_images(method, of) for of in served.values())
    if "scale" in method and method.scale.scales:
        few = sum(
            min(method.scale.slices, sum(len(slices) for slices in of.values()))
            for of in served.values()
        )
        images += few + (1 + len(method.scale.scales)) * len(whole)
    return images


def _images(method: DictConfig, served: Served) -> int:
    queries = len({query for slices in served.values() for query in slices})
    if "support_set" not in method:
        return queries + len(served)
    support_set = instantiate(method.support_set)
    sizes = {z: support_set.size(len(slices)) for z, slices in served.items()}
    used = sum(min(sizes[z], method.memories * len(slices)) for z, slices in served.items())
    matcher: type[Matcher] = get_class(method.matcher._target_)
    mirrored = queries + used if method.flip else 0
    return queries + (sum(sizes.values()) if matcher.on_features else used) + mirrored


# Of the default settings on one CPU core, where 150 to 200 steps take 3 to 4 minutes.
DEFAULT_STEP_S = 1.0


@dataclass(frozen=True)
class PlannedFold:
    """An unfinished training of a fold.

    Attributes:
        steps: of the optimiser, still to do.
        timed: seconds per step of each finished training with these settings, including the
            reading of the scans, on ``hosts``; empty where there is none.
    """

    steps: int
    timed: tuple[float, ...]
    hosts: frozenset[str]

    @property
    def seconds(self) -> float:
        """Expected time; without timings, that of the default settings on one CPU core."""
        return self.steps * (median(self.timed) if self.timed else DEFAULT_STEP_S)


class PlannedTraining(EpisodicTraining):
    """Stands in for the training of a method: notes in ``folds`` the unfinished ones, by the folder
    that keeps them, and trains nothing."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.folds: dict[Path, PlannedFold] = {}

    def train(
        self, network: EpisodicNetwork, scans: TrainingScans, name: str, settings: dict[str, Any]
    ) -> pd.DataFrame:
        fold = FoldTraining(network, self.schedule, self.folder_of(network, scans, name, settings))
        if not fold.load():
            pace = self.pace(settings)
            records = map(read_json, fold.folder.parents[1].glob(f"*/fold_*/{TIMING}"))
            like = [record for record in records if record and record.get("pace") == pace]
            self.folds[fold.folder] = PlannedFold(
                self.schedule.steps - fold.step,
                tuple(record["seconds"] / record["steps"] for record in like),
                frozenset(record["host"] for record in like),
            )
        network.eval().requires_grad_(False)
        return pd.DataFrame(fold.log)
