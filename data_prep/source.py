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
    """One scan in the prepared form.

    Attributes:
        image: float32 [Z, H, W].
        label: uint8 [Z, H, W] of prepared label ids.
        affine: float64 [4, 4], voxel (x, y, z) to mm.
        notes: what was decided on the way, for the manifest.
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray
    notes: dict[str, Any] = field(default_factory=dict)


class Source(ABC):
    """One raw dataset, as ``conf/data_prep/*.yaml`` builds it.

    Attributes:
        dataset: its name in ``conf/dataset``.
        scan_ids: the published scans with labels; empty where any may be there.
        max_unpacked_gb: most that its files may take when unpacked from a zip.
        settings: all numbers of the configuration; a change of them is a reason to prepare again.
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
        """Whether a file belongs to the dataset, by its path alone."""

    @abstractmethod
    def find(self, root: Path) -> dict[str, tuple[Path, ...]]:
        """Files of every scan by its id.

        Raises:
            UserError: there are none, or a scan is there twice.
        """

    @abstractmethod
    def prepare(self, files: Sequence[Path]) -> PreparedScan:
        """Read and prepare one scan from the files that ``find`` listed.

        Raises:
            UserError: a file is missing, broken, or not what it should be.
        """
