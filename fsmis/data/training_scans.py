"""What a method may train on in one fold: scans outside the fold, without labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fsmis.data.dataset import Dataset, Scan
from fsmis.data.protocol import Split, organ_mask
from fsmis.errors import UserError
from fsmis.files import sha256

SETTINGS = (1, 2)


class TrainingScans:
    """The scans outside a fold, read one at a time, ``label`` None.

    Neither the fold's query scans nor its support scan are included, as in the public code of
    SSL-ALPNet, ADNet and Q-Net. In setting 1 no label file is opened. In setting 2 (Ouyang et al.,
    ECCV 2020, section 4.1) slices that contain an organ under test are left out, and labels are
    read only for that. The literature tests one group of organs at a time, liver and spleen or
    both kidneys; here these are separate runs, as with ``organs=[RK,LK]``. Other settings raise
    UserError.
    """

    def __init__(self, dataset: Dataset, split: Split, setting: int) -> None:
        if setting not in SETTINGS:
            raise UserError(f"setting={setting}: choose 1 or 2")
        tested = {split.support_id, *split.query_ids}
        self.dataset = dataset.name
        self.fold = split.fold
        self.scan_ids = [scan_id for scan_id in dataset.scan_ids if scan_id not in tested]
        self._source = dataset
        self._setting = setting

    def __iter__(self) -> Iterator[Scan]:
        for scan_id in self.scan_ids:
            scan = self._load(scan_id)
            if len(scan.image):
                yield scan

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the contents of the image files and the slices that are left."""
        known = [
            (scan_id, sha256(self._source.files(scan_id)[0]), self._kept(scan_id))
            for scan_id in self.scan_ids
        ]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def _load(self, scan_id: str) -> Scan:
        scan = self._source.load_image(scan_id)
        kept = self._kept(scan_id)
        return scan if kept is None else replace(scan, image=scan.image[kept])

    def _kept(self, scan_id: str) -> list[int] | None:
        if self._setting == 1:
            return None
        scan = self._source.load(scan_id)
        organs = [organ_mask(scan, label_id) for label_id in self._source.organs.values()]
        tested = np.any(organs, axis=(0, 2, 3))
        return np.flatnonzero(~tested).tolist()
