"""What identifies a run, all that can change a score and nothing else; and where it comes from."""

import hashlib
import json
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fsmis.data.dataset import Dataset
from fsmis.data.nifti import NIFTI
from fsmis.files import now, sha256
from fsmis.runs.evaluation import Evaluation
from fsmis.runs.records import read_json
from fsmis.segmenters.checkpoints import HUB_FILES, find_checkpoint, local_files
from fsmis.settings import with_selected_organs
from fsmis.source import PROJECT, git_state, package_version, source_hash

# Keys that name places, selections and portions of work: without influence on a score, as is all
# below them. Whole keys, so that a method of one's own may call a parameter as it likes.
NOT_SCORED = {
    *("dataset.root", "dataset.source", "dataset.expected", "protocol.fold"),
    *(
        f"method.{part}.{key}"  # the same with and without cache or compiling, but for rounding
        for part in ("matcher", "segmenter")
        for key in ("device", "batch_size", "encode_batch_size", "cache", "compile")
    ),
    *(f"method.training.{key}" for key in ("device", "folder", "log_every", "checkpoint_every")),
}

# The same for the methods that come with the project; another's may mean anything by them.
NOT_SCORED_OF_OURS = {"method.batch_size", "method.device"}

TARGET = "_target_"  # key of a class
# Settings of a method that name a folder of NIfTI files, which stand for it.
FOLDERS = ("predictions", "training.supervoxels.files")

# Parts of an identity that change without a word on the command line.
REASONS = {
    "data": "the data files have changed",
    "weights": "the weight files have changed",
    "code": "the code of {classes} has changed",
}

# Whose versions are noted beside.
PACKAGES = [
    *("fsmis", "torch", "torchvision", "sam2", "transformers", "timm", "lpips", "numpy", "scipy"),
    *("scikit-image", "medpy", "nibabel", "SimpleITK", "hydra-core", "pandas"),
]


def identity(cfg: DictConfig, dataset: Dataset) -> dict[str, Any]:
    """What can change a score, as plain data: ``configured`` and the contents of the data files."""
    return {**configured(cfg), "data": dataset.fingerprint()}


def configured(cfg: DictConfig) -> dict[str, Any]:
    """What can change a score and is known without the data.

    The method with everything nested in it, the protocol without the fold selection (``fold=0`` and
    ``fold=all`` resume each other), the dataset without its folder, the contents of the files that
    the method names (weights), the code of these classes and of the scoring, and the seed.

    Raises UserError for a selected organ that the dataset lacks, or damaged code files.
    """
    cfg = with_selected_organs(cfg)
    method, weights = _method_and_weights(cfg.method)
    scored = {part: settings(cfg[part], part) for part in ("method", "protocol", "dataset")}
    targets: dict[str, set[object]] = {Evaluation.__name__: {Evaluation}}
    for value in [v for part in scored.values() for k, v in part.items() if _is_target(k)]:
        targets.setdefault(_class_name(value), set()).add(value)
    parts = {part: _without_modules(values) for part, values in scored.items()}
    parts["method"] = method
    code = {name: source_hash(*classes) for name, classes in sorted(targets.items())}
    return {**parts, "weights": weights, "code": code, "seed": cfg.seed}


def method_identity(cfg: DictConfig) -> dict[str, Any]:
    """What the answers of ``cfg.method`` depend on: its settings with all that is nested in it, the
    contents of the files that they name, and the code of its classes."""
    method, weights = _method_and_weights(cfg.method)
    found = settings(cfg.method, "method")
    code = source_hash(*[value for key, value in found.items() if _is_target(key)])
    return {"settings": method, "weights": weights, "code": code}


def _method_and_weights(method: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of a method but those that name files, and the SHA-256 of these files."""
    weights = {key: digest for key, (_, digest) in _files(method).items()}
    found = _without_modules(settings(method, "method"))
    return {key: value for key, value in found.items() if key not in weights}, weights


def variant_hash(identified: dict[str, Any]) -> str:
    """Twelve hexadecimal digits for an identity."""
    text = json.dumps(identified, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def news(parent: Path, variant: str, identified: dict[str, Any]) -> list[str]:
    """Why a variant configured like an earlier one is computed anew, a line for each reason.

    ``parent`` is the folder of all variants of a method on a dataset.
    """
    if (parent / variant).exists():
        return []
    for path in sorted(parent.glob("*/plan.json"), key=_time, reverse=True):
        other = (read_json(path) or {}).get("identity")
        if not isinstance(other, dict):
            continue
        changed = [key for key in identified if _comparable(other, key) != identified[key]]
        if changed and set(changed) <= set(REASONS):
            before, now = other.get("code", {}), identified["code"]
            classes = ", ".join(name for name in now if before.get(name) != now[name])
            reasons = " and ".join(REASONS[key].format(classes=classes) for key in sorted(changed))
            return [f"{reasons} since variant {path.parent.name}: computing anew"]
    return []


def settings(config: DictConfig, part: str) -> dict[str, Any]:
    """The scored settings of a part of the configuration, such as ``method``, by dotted key."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    ours = str(values.get(TARGET)).startswith(f"{PROJECT}.")
    unscored = NOT_SCORED | NOT_SCORED_OF_OURS if ours else NOT_SCORED
    return dict(_flat(values, part, len(part) + 1, unscored))


def weights_of(config: DictConfig) -> dict[str, str]:
    """SHA-256, by name, of the weights a method was built with, including those from the hub."""
    return dict(_files(config).values()) | {
        value: sha256(path)
        for key, value in settings(config, "method").items()
        if (path := _downloaded(config, key, value)) is not None
    }


def command() -> str:
    """The command that makes this run alone, also where it is one job of a sweep."""
    if not HydraConfig.initialized():
        return shlex.join(sys.orig_argv)
    job = HydraConfig.get()
    given = [s.path for s in job.runtime.config_sources if s.provider == "command-line"]
    own = [word for path in given for word in ("--config-dir", path)]
    own += [word for word in job.overrides.hydra if word.startswith("hydra.searchpath=")]
    return shlex.join(["python", "-m", "fsmis", "run", *own, *job.overrides.task])


def provenance(seed: int, weights: dict[str, str], data: str) -> dict[str, Any]:
    """Everything known at the start: ``weights`` are SHA-256 by path, ``data`` is
    ``Dataset.fingerprint``."""
    return {
        "command": command(),
        "start": now(),
        "end": None,
        "git": git_state(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "device": device_name(),
        "seed": seed,
        "weights": weights,
        "data": data,
    }


def device_name() -> str:
    """The GPU's name where torch is loaded and has one, otherwise the processor's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _downloaded(config: DictConfig, key: str, value: Any) -> Path | None:
    """The file in the hub's cache that a setting's hub id stands for, if it is one."""
    owner, _, name = key.rpartition(".")
    if name == "checkpoint" and OmegaConf.select(config, f"{owner}.model") is not None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(value)):  # of the engines over transformers
            return None
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(value, "model.safetensors")
        return Path(path) if isinstance(path, str) else None
    return find_checkpoint(value) if str(value) in HUB_FILES else None


def _files(config: DictConfig) -> dict[str, tuple[str, str]]:
    """Name and SHA-256, by setting, of the files, given by path or shipped, that settings name.

    A folder that transformers opens counts by its configuration and weights; one of ``FOLDERS`` by
    the names and contents of its NIfTI files. A hub id stands for itself: it is the same file on
    every machine, downloaded or not.
    """
    found = {}
    for key, value in settings(config, "method").items():
        if isinstance(value, str) and value:
            folder = Path(value).expanduser()
            if key in FOLDERS and folder.is_dir():
                maps = [p for p in folder.iterdir() if p.name.endswith(NIFTI)]
                files = {path.name: sha256(path) for path in maps if path.is_file()}
                text = json.dumps(files, sort_keys=True)
                found[key] = value, hashlib.sha256(text.encode()).hexdigest()
            elif digests := [sha256(path) for path in local_files(value)]:
                joined = hashlib.sha256("".join(digests).encode()).hexdigest()
                found[key] = value, digests[0] if len(digests) == 1 else joined
    return found


def _flat(value: Any, key: str, start: int, unscored: set[str]) -> Iterator[tuple[str, Any]]:
    """Values by dotted key from its position ``start`` on, without those that are not scored."""
    if key in unscored:
        return
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))  # such as steps with a class each
    if not isinstance(value, dict):
        yield key[start:], value
        return
    for name, item in value.items():
        yield from _flat(item, f"{key}.{name}", start, unscored)


def _is_target(key: str) -> bool:
    return key.split(".")[-1] == TARGET


def _class_name(dotted: Any) -> str:
    return str(dotted).rsplit(".", 1)[-1]


def _without_modules(values: dict[str, Any]) -> dict[str, Any]:
    """Settings with classes only by name: where their code lies changes no score."""
    return {key: _class_name(v) if _is_target(key) else v for key, v in values.items()}


def _comparable(identified: dict[str, Any], key: str) -> Any:
    """Part of a stored identity; earlier versions kept the modules of classes in it."""
    value = identified.get(key)
    return _without_modules(value) if isinstance(value, dict) else value


def _time(path: Path) -> int:
    return path.stat().st_mtime_ns
