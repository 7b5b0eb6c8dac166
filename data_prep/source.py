"""What the datasets share: how raw scans are named, read and brought to the prepared form."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """One scan: image float32 and label uint8 (prepared ids), both [Z, H, W].

    ``affine`` float64 [4, 4] maps voxels (x, y, z) to mm; ``notes``, for the manifest, say what was
    decided on the way.
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    notes: dict[str, Any] = field(default_factory=dict)


class Source(ABC):
    """One raw dataset, built from ``conf/data_prep/*.yaml``, whose comments explain the settings.

    ``scan_ids`` are the published scans with labels; empty where any may be there. A change of
    ``settings``, all numbers of the configuration, is a reason to prepare again.
    """

    def __init__(
        self,
        dataset: str,
        scan_ids: Sequence[int | str],
        max_unpacked_gb: float,
        **settings: Any,
    ) -> None:
        self.dataset = dataset
        self.scan_ids = [str(scan_id) for scan_id in scan_ids]
        self.max_unpacked_gb = max_unpacked_gb
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # as the manifest holds it

    @abstractmethod
    def wanted(self, member: PurePosixPath) -> bool:
        """Whether a file belongs to the dataset, judged by its path only."""

    @abstractmethod
    def find(self, root: Path) -> dict[str, tuple[Path, ...]]:
        """Files of every scan by its id; UserError where there are none, or a scan twice."""

    @abstractmethod
    def prepare(self, files: Sequence[Path]) -> PreparedScan:
        """Prepare one scan from the files of ``find``; UserError for missing or bad ones."""
