"""What identifies a run: everything that can change a score, and nothing else."""

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fsmis.datasets import Dataset
from fsmis.files.checksum import sha256
from fsmis.runs.records import read_json
from fsmis.segmenters.files import HUB_FILES, SHIPPED, find_checkpoint

# Raised when the code changes so that the same configuration scores differently.
SCORING_VERSION = 1

# Keys that name places, selections and portions of work: without influence on a score.
NOT_SCORED = {"device", "root", "source", "expected", "fold", "batch_size", "encode_batch_size"}
NOT_SCORED |= {"folder", "log_every", "checkpoint_every"}  # of a training
NOT_SCORED |= {"cache", "compile"}  # the same with and without, but for rounding

# Parts of an identity that change without a word on the command line.
REASONS = {
    "data": "the data files have changed",
    "weights": "the weight files have changed",
    "scoring": "the scoring code has changed",
}


def identity(cfg: DictConfig, dataset: Dataset) -> dict[str, Any]:
    """What can change a score, as plain data: ``configured`` and the contents of the data files."""
    return {**configured(cfg), "data": dataset.fingerprint()}


def configured(cfg: DictConfig) -> dict[str, Any]:
    """What can change a score and is known without the data.

    The method with all that it nests, the protocol without the fold selection (``fold=0`` and
    ``fold=all`` resume each other), the dataset without its folder, the contents of the files that
    the method names (weights), and the seed.
    """
    weights = {key: digest for key, (_, digest) in _files(cfg.method).items()}
    parts = {name: settings(cfg[name]) for name in ("method", "protocol", "dataset")}
    parts["method"] = {k: v for k, v in parts["method"].items() if k not in weights}
    return {**parts, "weights": weights, "scoring": SCORING_VERSION, "seed": cfg.seed}


def variant_hash(identified: dict[str, Any]) -> str:
    """Twelve hexadecimal digits for an identity."""
    text = json.dumps(identified, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def news(parent: Path, variant: str, identified: dict[str, Any]) -> list[str]:
    """Why a variant that is configured like one of before is computed anew, a line for each.

    Args:
        parent: folder of all variants of a method on a dataset.
        variant: hash of this one.
        identified: identity of this one.
    """
    if (parent / variant).exists():
        return []
    lines = []
    for path in sorted(parent.glob("*/plan.json")):
        other = (read_json(path) or {}).get("identity", {})
        changed = sorted(key for key in identified if other.get(key) != identified[key])
        if changed and set(changed) <= set(REASONS):
            reasons = " and ".join(REASONS[key] for key in changed)
            lines.append(f"{reasons} since variant {path.parent.name}: computing anew")
    return lines


def settings(config: DictConfig) -> dict[str, Any]:
    """The scored settings of a part of the configuration: value by dotted key."""
    flat = _flat(OmegaConf.to_container(config, resolve=True))
    return {key: value for key, value in flat.items() if NOT_SCORED.isdisjoint(key.split("."))}


def weights_of(config: DictConfig) -> dict[str, str]:
    """SHA-256 of the weights that a method was built with, those from the hub too, by name."""
    hub = [value for value in settings(config).values() if str(value) in HUB_FILES]
    return dict(_files(config).values()) | {name: sha256(find_checkpoint(name)) for name in hub}


def _files(config: DictConfig) -> dict[str, tuple[str, str]]:
    """Name and SHA-256 of the files, given by path or shipped, that settings name; by setting.

    A hub id stands for itself: the same file on every machine, downloaded or not.
    """
    found = {}
    for key, value in settings(config).items():
        if isinstance(value, str) and value:
            paths = [path for path in (Path(value).expanduser(), SHIPPED / value) if path.is_file()]
            if paths:
                found[key] = value, sha256(paths[0])
    return found


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    parts = [_flat(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()]
    return {name: item for part in parts for name, item in part.items()}
