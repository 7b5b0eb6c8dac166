"""The evaluation protocol: folds, support slices and query slices of few-shot segmentation.

Three variants are in circulation, and published numbers mix them, so every number names its own:

- ``alpnet`` (SSL-ALPNet, DSPNet): the support of a fold is the first scan of the next fold.
- ``adnet`` (ADNet): the same scans, but sorted before the last one is taken; only the last fold,
  whose next fold is the first, differs.
- ``qnet`` (Q-Net, RPT, GMRD): the same scans sorted, the support is the one at ``support_index``.

With ``n_parts`` > 1, the true extent of the organ in the query decides which support slice serves a
query slice, and ``query_slices=organ_range`` segments only that extent: oracles, as in published
rows. ``untold_full_volume`` has none, nor has ``full_volume`` with ``n_parts=1``: as no user has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fsmis.data.dataset import Dataset, Scan
from fsmis.errors import UserError

VARIANTS = ("alpnet", "adnet", "qnet")
QUERY_SLICES = ("organ_range", "full_volume", "untold_full_volume")


@dataclass(frozen=True)
class Split:
    """One fold: the scan that supports and the scans to segment."""

    fold: int
    support_id: str
    query_ids: list[str]


@dataclass(frozen=True, eq=False)
class OrganTask:
    """What a method has to segment for one organ.

    Attributes:
        support_slices: int [P], slice positions in the support scan, one for each part.
        support_masks: bool [P, H, W], the organ in these slices, never empty.
        query_slices: int [S], slice positions in the query scan, ascending.
        part: int [S] in 0..P-1, which support slice serves each query slice.
        beside: int [S], a second one that serves it beside the first, -1 for none; None: none do.
    """

    organ: str
    support_slices: np.ndarray
    support_masks: np.ndarray
    query_slices: np.ndarray
    part: np.ndarray
    beside: np.ndarray | None = None

    def asking(self, rows: np.ndarray) -> OrganTask:
        """The same task with only some of its query slices."""
        asked = replace(self, query_slices=self.query_slices[rows], part=self.part[rows])
        return asked if self.beside is None else replace(asked, beside=self.beside[rows])

    def serving(self) -> list[list[int]]:
        """Support slices that serve each query slice, the nearest last."""
        parts = [self.part] if self.beside is None else [self.beside, self.part]
        return [self.support_slices[some[some >= 0]].tolist() for some in np.stack(parts, 1)]


@dataclass(frozen=True, eq=False)
class Episode:
    """One support scan, one query scan, and a task for each organ that both contain.

    Neither scan carries its label: a method knows only the masks of the tasks.

        from fsmis import Episode
        def brightness(episode: Episode) -> float:  # of the query's slices, float32 [S, H, W]
            return float(episode.query.image[episode.query_slices].mean())

    Attributes:
        skipped: reason by organ for those without a task; they have no score.
        whole_volume: the tasks cover every slice of the query, whether it holds the organ or not.
    """

    dataset: str
    fold: int
    support: Scan
    query: Scan
    organs: dict[str, OrganTask]
    skipped: dict[str, str] = field(default_factory=dict)
    whole_volume: bool = False

    @property
    def query_slices(self) -> np.ndarray:
        """Positions in the query scan that belong to the task of some organ, int, ascending."""
        return np.unique(np.concatenate([task.query_slices for task in self.organs.values()]))

    def asking(self, rows: Mapping[str, np.ndarray]) -> Episode:
        """The same episode with only some query slices: ``rows`` of the task of each organ, int."""
        tasks = {organ: task.asking(rows[organ]) for organ, task in self.organs.items()}
        return replace(self, organs=tasks, whole_volume=False)

    def labelled_alone(self) -> Episode:
        """The same episode with the labelled slices of its support and no others."""
        labelled = self.support_slices
        tasks = {
            organ: replace(task, support_slices=np.searchsorted(labelled, task.support_slices))
            for organ, task in self.organs.items()
        }
        support = replace(self.support, image=self.support.image[labelled])
        return replace(self, support=support, organs=tasks)

    @property
    def support_slices(self) -> np.ndarray:
        """Positions in the support scan that are labelled for some organ, int, ascending."""
        return np.unique(np.concatenate([task.support_slices for task in self.organs.values()]))


def served_slices(episode: Episode) -> dict[int, list[int]]:
    """Support slice -> the query slices it serves, for any organ; both ascending."""
    served: dict[int, set[int]] = {}
    for task in episode.organs.values():
        for query, supports in zip(task.query_slices.tolist(), task.serving(), strict=True):
            for z in supports:
                served.setdefault(z, set()).add(query)
    return {z: sorted(served[z]) for z in sorted(served)}


class Protocol:
    """Folds and episodes of one variant; UserError for any other value.

    Args:
        variant: ``alpnet``, ``adnet`` or ``qnet``.
        fold: number of a fold, list of numbers, or ``all``.
        n_parts: number of support slices for each organ (3 in most published rows).
        query_slices: ``organ_range`` (that contain the organ), ``full_volume``, or
            ``untold_full_volume``, where it has to be found which part serves.
        support_index: position of the support among the sorted scans of a fold; ``qnet`` only.
    """

    def __init__(
        self,
        variant: str,
        fold: int | str | Sequence[int],
        n_parts: int,
        query_slices: str,
        support_index: int | None,
    ) -> None:
        if variant not in VARIANTS:
            raise UserError(f"protocol.variant={variant}: choose one of {', '.join(VARIANTS)}")
        if query_slices not in QUERY_SLICES:
            raise UserError(
                f"protocol.query_slices={query_slices}: choose one of {', '.join(QUERY_SLICES)}"
            )
        if not isinstance(n_parts, int) or n_parts < 1:
            raise UserError(f"protocol.n_parts={n_parts}: must be a whole number, 1 or more")
        if (variant == "qnet") != (support_index is not None):
            raise UserError(
                f"protocol.support_index={support_index}: variant qnet needs a number, "
                "the other variants take null"
            )
        self.variant = variant
        self.n_parts = n_parts
        self.query_slices = query_slices
        self.support_index = support_index
        self.untold = query_slices == "untold_full_volume"  # parts are equal ones of the volume
        self._fold = fold

    @property
    def name(self) -> str:
        """Name for tables and files, e.g. ``alpnet-3parts-organ_range``."""
        index = "" if self.support_index is None else self.support_index
        several = "s" * (self.n_parts > 1)
        return f"{self.variant}{index}-{self.n_parts}part{several}-{self.query_slices}"

    @property
    def oracle(self) -> str:
        """What is known of the query's true extent, in words for reports."""
        known = []
        if self.query_slices == "organ_range":
            known.append("only slices that contain the organ are segmented and scored")
        if self.n_parts > 1 and not self.untold:
            known.append("the organ's extent says which support slice serves a query slice")
        return "; ".join(known) or "none"

    def splits(self, dataset: Dataset) -> list[Split]:
        """The selected folds; UserError where one does not exist or lacks the ``support_index``."""
        n_folds = len(dataset.fold_starts) - 1
        return [self._split(dataset, fold) for fold in self._folds(dataset.name, n_folds)]

    def episode(self, dataset: Dataset, split: Split, support: Scan, query: Scan) -> Episode:
        """Cut an episode from two labelled scans.

        Raises UserError where both are the same scan, ValueError where one carries no label.
        """
        if support.id == query.id:
            raise UserError(
                f"{dataset.name}: scan {query.id} would support itself in fold {split.fold}; "
                "choose another support"
            )
        organs: dict[str, OrganTask] = {}
        skipped: dict[str, str] = {}
        for organ, label_id in dataset.organs.items():
            support_mask, query_mask = organ_mask(support, label_id), organ_mask(query, label_id)
            absent = [
                role
                for role, mask in (
                    (f"support scan {support.id}", support_mask),
                    (f"query scan {query.id}", query_mask),
                )
                if not mask.any()
            ]
            if absent:
                skipped[organ] = f"absent from {' and '.join(absent)}"
            else:
                organs[organ] = self._task(organ, support_mask, query_mask)
        return Episode(
            dataset=dataset.name,
            fold=split.fold,
            support=replace(support, label=None),
            query=replace(query, label=None),
            organs=organs,
            skipped=skipped,
            whole_volume=self.query_slices != "organ_range",
        )

    def _folds(self, name: str, n_folds: int) -> list[int]:
        if self._fold == "all":
            return list(range(n_folds))
        wanted: list[object] = [self._fold]
        if isinstance(self._fold, Sequence) and not isinstance(self._fold, str):
            wanted = list(self._fold)
        unknown = [fold for fold in wanted if fold not in range(n_folds)]
        if unknown or not wanted:
            raise UserError(
                f"protocol.fold={self._fold}: {name} has {n_folds} folds, 0 to {n_folds - 1}; "
                "choose a number, a list of them, or all"
            )
        return [fold for fold in range(n_folds) if fold in wanted]

    def _split(self, dataset: Dataset, fold: int) -> Split:
        starts, ids = dataset.fold_starts, dataset.scan_ids
        queries = list(range(starts[fold], starts[fold + 1]))
        support = starts[fold + 1] % starts[-1]
        if self.variant != "alpnet":
            scans = sorted([*queries, support])
            last = len(scans) - 1
            index = last if self.support_index is None else self.support_index
            if index not in range(len(scans)):
                raise UserError(
                    f"protocol.support_index={index}: fold {fold} of {dataset.name} has "
                    f"{len(scans)} scans; choose 0 to {last}"
                )
            support, queries = scans[index], scans[:index] + scans[index + 1 :]
        return Split(fold, ids[support], [ids[query] for query in queries])

    def _task(self, organ: str, support_mask: np.ndarray, query_mask: np.ndarray) -> OrganTask:
        present = slices_with(support_mask)
        middles = (2 * np.arange(self.n_parts) + 1) * len(present) // (2 * self.n_parts)
        extent = slices_with(query_mask)
        if self.query_slices != "organ_range":
            query_slices = np.arange(len(query_mask))
        elif self.variant == "alpnet":
            query_slices = np.arange(extent[0], extent[-1] + 1)
        else:
            query_slices = extent
        return OrganTask(
            organ=organ,
            support_slices=present[middles],
            support_masks=support_mask[present[middles]],
            query_slices=query_slices,
            part=self._parts(query_slices, query_slices if self.untold else extent),
        )

    def _parts(self, query_slices: np.ndarray, extent: np.ndarray) -> np.ndarray:
        """Part of each query slice; slices outside the extent take the nearest part."""
        last = self.n_parts - 1
        if self.variant != "alpnet":
            # equal counts of slices that contain the organ; searchsorted is the part of any slice
            bounds = np.linspace(0, len(extent), self.n_parts + 1).astype(int)[1:-1]
            return np.searchsorted(extent[bounds], query_slices, side="right")
        first, height = extent[0], extent[-1] - extent[0]
        if height == 0:  # a single slice has no thirds: the middle support slice serves it
            return np.clip(last // 2 + last * np.sign(query_slices - first), 0, last)
        return np.clip((query_slices - first) // (height / self.n_parts), 0, last).astype(int)


def organ_mask(scan: Scan, label_id: int) -> np.ndarray:
    """Mask bool [Z, H, W] of one label id; ValueError where the scan carries no label."""
    if scan.label is None:
        raise ValueError(f"scan {scan.id} carries no label")
    return scan.label == label_id


def slices_with(mask: np.ndarray) -> np.ndarray:
    """Positions, int [K] ascending, of the non-empty slices of a mask [Z, H, W]."""
    return np.flatnonzero(mask.any(axis=(1, 2)))


def truth(scan: Scan, label_id: int, task: OrganTask) -> np.ndarray:
    """True mask, bool [S, H, W], of the slices that a task scores, from the labelled scan."""
    return organ_mask(scan, label_id)[task.query_slices]
