"""One cell of a run: load two scans, segment the query, score every organ."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.utils import instantiate
from medpy.metric.binary import assd, dc, hd95, jc
from omegaconf import DictConfig

from fsmis.data.dataset import Dataset, Scan
from fsmis.data.nifti import write_mask
from fsmis.data.protocol import Episode, Protocol, Split, truth
from fsmis.errors import ScanError, UserError
from fsmis.methods import Method, TrainingScans
from fsmis.pipeline import Match
from fsmis.runs.records import Cell


@dataclass(frozen=True, eq=False)
class Segmented:
    """A segmented query scan.

    Attributes:
        query: the episode's query, with its label.
        masks, truths: bool [S, H, W] by organ, of the query slices of the organ's task.
        matches: see ``Method.matches``.
        seconds: wall time of the method.
    """

    episode: Episode
    query: Scan
    masks: dict[str, np.ndarray]
    truths: dict[str, np.ndarray]
    matches: Mapping[str, list[Match]]
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        """Scores by organ; ``seconds`` is the organ's equal share, so that the sum is the total."""
        return [
            {
                "fold": self.episode.fold,
                "support_scan": self.episode.support.id,
                "query_scan": self.query.id,
                "organ": organ,
                **score(mask, self.truths[organ], self.query.spacing),
                "seconds": self.seconds / len(self.masks),
            }
            for organ, mask in self.masks.items()
        ]

    def write(self, path: Path, organs: dict[str, int]) -> None:
        """Write the predictions as one NIfTI label map in the query's geometry.

        Where organs overlap, the higher label id wins.
        """
        label = np.zeros(self.query.image.shape, np.uint8)
        for organ in sorted(self.masks, key=lambda organ: organs[organ]):
            slices = self.episode.organs[organ].query_slices
            label[slices] = np.where(self.masks[organ], organs[organ], label[slices])
        write_mask(path, label, self.query.affine)


class Evaluation:
    """Segments query scans with the configured method, which is built when first needed."""

    def __init__(self, method: DictConfig, dataset: Dataset, protocol: Protocol) -> None:
        self._config = method
        self._method: Method | None = None
        self._fitted: int | None = None  # the fold
        self._dataset = dataset
        self._protocol = protocol
        # a support serves all queries of its fold
        self._load_support: Callable[[str], Scan] = lru_cache(maxsize=1)(dataset.load)

    def build(self) -> Method:
        if self._method is None:
            self._method = instantiate(self._config)
        return self._method

    def fit(self, fold: int) -> pd.DataFrame | None:
        """Let the method train for a fold, unless it has already; returns the log of the training.

        Raises UserError where a scan cannot be read or none is left to train on.
        """
        if self._fitted == fold:
            return None
        method = self.build()
        split = next(s for s in self._protocol.splits(self._dataset) if s.fold == fold)
        log = method.fit(TrainingScans(self._dataset, split, method.setting))
        self._fitted = fold
        return log

    def episode(self, cell: Cell) -> tuple[Scan, Episode]:
        """One query scan with its label, and its episode; ScanError where a scan cannot be read."""
        try:
            query = self._dataset.load(cell.query_scan)
            support = self._load_support(cell.support_scan)
        except UserError as error:
            raise ScanError(str(error)) from error
        split = Split(cell.fold, cell.support_scan, [cell.query_scan])
        return query, self._protocol.episode(self._dataset, split, support, query)

    def segment(self, cell: Cell) -> Segmented:
        """Segment one query scan.

        Raises ScanError where a scan cannot be read, KeyError where the method left out an organ.
        """
        query, episode = self.episode(cell)
        labels = self._dataset.organs
        truths = {
            organ: truth(query, labels[organ], task) for organ, task in episode.organs.items()
        }
        self.fit(cell.fold)
        method = self.build()
        start = time.perf_counter()
        if truths and self._protocol.untold:
            from fsmis.methods.prompted import serving  # slow to load, and not always used

            episode = serving(method, episode)
        masks = method.segment(episode) if truths else {}
        seconds = time.perf_counter() - start
        masks = {organ: masks[organ] for organ in truths}
        return Segmented(episode, query, masks, truths, method.matches, seconds)


Score = dict[str, int | float | None]


def score(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float]) -> Score:
    """Compare two masks bool [S, H, W] over the stack of the scored slices.

    Slices are taken as neighbours at ``spacing[0]`` (mm; z, y, x) in the order given: distances
    close the gap where the organ vanishes in between and the protocol leaves those slices out.

    If only one mask is empty, the overlap is 0 and the distances are None. Two empty masks have
    overlap 1 and distances None; protocols skip organs that a scan lacks, so this does not occur.

    Returns:
        Columns of scores.csv: ``n_slices``; voxels ``tp``, ``fp``, ``fn``; ``slices_true`` that
        hold the organ, ``slices_found`` with a prediction, ``slices_hit`` with both; ``fp_ml``
        (volume of the wrong voxels); ``dice`` and ``iou`` in [0, 1]; ``hd95_mm`` (95th percentile
        of the surface distances of both directions together) and ``assd_mm`` (average symmetric
        surface distance: the mean over both surfaces together).

    Raises:
        ValueError: the masks are not bool arrays of the same shape [S, H, W].
    """
    for mask in (prediction, truth):
        if mask.dtype != bool or mask.ndim != 3 or mask.shape != truth.shape:
            raise ValueError(
                f"masks must be bool [S, H, W] of one shape, not {prediction.dtype} "
                f"{prediction.shape} and {truth.dtype} {truth.shape}"
            )
    held, found = truth.any(axis=(1, 2)), prediction.any(axis=(1, 2))
    counts: Score = {
        "n_slices": len(truth),
        "tp": int((prediction & truth).sum()),
        "fp": int((prediction & ~truth).sum()),
        "fn": int((~prediction & truth).sum()),
        "slices_true": int(held.sum()),
        "slices_found": int(found.sum()),
        "slices_hit": int((held & found).sum()),
        "fp_ml": float((prediction & ~truth).sum() * np.prod(spacing) / 1000),
    }
    if not prediction.any() or not truth.any():
        agreement = float(prediction.any() == truth.any())
        return counts | {"dice": agreement, "iou": agreement, "hd95_mm": None, "assd_mm": None}
    # outside the box around both masks there is nothing to measure, and medpy's time grows with it
    box = _bounding_box(prediction | truth)
    prediction, truth = prediction[box], truth[box]
    return counts | {
        "dice": float(dc(prediction, truth)),
        "iou": float(jc(prediction, truth)),
        "hd95_mm": float(hd95(prediction, truth, voxelspacing=spacing)),
        "assd_mm": float(assd(prediction, truth, voxelspacing=spacing)),
    }


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(index.min(), index.max() + 1) for index in np.nonzero(mask))
