"""What a few-shot segmentation method is, from an episode to masks, and what it may train on."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pandas as pd

from fsmis.data.dataset import Dataset, Scan
from fsmis.data.protocol import Episode, Split, organ_mask
from fsmis.errors import UserError
from fsmis.files import sha256
from fsmis.pipeline import Match


class Method(ABC):
    """A few-shot segmentation method.

    One is added by a file and a YAML in the group ``method`` whose ``_target_`` names the class;
    every other key of the YAML is an argument of its constructor.

        from fsmis import Method
        class Bright(Method):  # a whole one is in the README
            def segment(self, episode): ...  # {organ: bool [S, H, W]}

    Attributes:
        setting: which slices of the training scans a trained method may see, 1 or 2 (see
            ``TrainingScans``).
        matches: for figures, what each query slice of the last episode was segmented from, by
            organ; empty for methods that cannot say.
        confidence: how sure it is of the last episode's organs, in [0, 1]; without those not found,
            empty for methods that cannot say.
    """

    setting: int = 1
    matches: Mapping[str, list[Match]] = MappingProxyType({})
    confidence: Mapping[str, float] = MappingProxyType({})

    def fit(self, scans: TrainingScans) -> pd.DataFrame | None:
        """Train for a fold; called before its first episode. Does nothing by default.

        Args:
            scans: other scans than the fold's, without any label.

        Returns:
            What came of it, for the run's ``training`` folder: columns ``step`` and ``loss``, and
            the terms that the loss is the sum of; None where nothing was trained.
        """
        return None

    @abstractmethod
    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        """Segment the query slices of every organ of the episode.

        Args:
            episode: support slices with masks, and the query scan without any label.

        Returns:
            ``{organ: bool [S, H, W]}``, S in the order of ``episode.organs[organ].query_slices``.
        """


SETTINGS = (1, 2)


class TrainingScans:
    """The scans outside a fold, read one at a time, ``label`` None.

    Neither the fold's query scans nor its support scan are included, as in the public code of
    SSL-ALPNet, ADNet and Q-Net. In setting 1 no label file is opened. In setting 2 (Ouyang et al.,
    ECCV 2020, section 4.1) slices that contain an organ under test are left out, and labels are
    read only for that; each run of successive slices that are left comes as a scan of its own, so
    that neighbours are neighbours. The literature tests one group of organs at a time, liver and
    spleen or both kidneys; here these are separate runs, as with ``organs=[RK,LK]``. Other settings
    raise UserError.
    """

    def __init__(self, dataset: Dataset, split: Split, setting: int) -> None:
        if setting not in SETTINGS:
            raise UserError(f"method.training.setting={setting}: choose 1 or 2")
        tested = {split.support_id, *split.query_ids}
        self.dataset = dataset.name
        self.fold = split.fold
        self.scan_ids = [scan_id for scan_id in dataset.scan_ids if scan_id not in tested]
        self._source = dataset
        self._setting = setting

    def __iter__(self) -> Iterator[Scan]:
        for scan_id in self.scan_ids:
            scan, kept = self._source.load_image(scan_id), self._kept(scan_id)
            if kept is None:
                yield scan
                continue
            first_of_runs = np.flatnonzero(np.diff(kept) > 1) + 1
            for run in filter(len, np.split(np.array(kept, int), first_of_runs)):
                yield replace(scan, image=scan.image[run])

    def fingerprint(self) -> str:
        """SHA-256 (hex) over what is read: the contents of the image files, the percentiles that
        scale them, and the slices that are left."""
        known = [
            (scan_id, sha256(self._source.files(scan_id)[0]), self._kept(scan_id))
            for scan_id in self.scan_ids
        ]
        read = [self._source.percentiles, known]
        return hashlib.sha256(json.dumps(read).encode()).hexdigest()

    def _kept(self, scan_id: str) -> list[int] | None:
        if self._setting == 1:
            return None
        scan = self._source.load(scan_id)
        organs = [organ_mask(scan, label_id) for label_id in self._source.organs.values()]
        tested = np.any(organs, axis=(0, 2, 3))
        return np.flatnonzero(~tested).tolist()
