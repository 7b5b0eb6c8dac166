"""What a mistyped word of a command line was meant to be."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

CONF_DIR = Path(__file__).resolve().parents[1] / "conf"
CONFIGS = ("config", "segment")  # whose settings a command line may name
NO_SETTING = re.compile(r"Could not override '([^'@]+)'")
NO_ARGUMENT = re.compile(r"unexpected keyword argument '(\w+)'")
FULL_KEY = re.compile(r"full_key: ([\w.]+)")
NO_CHOICE = re.compile(r"Could not find '([^']+)'")


def options_of(group: str) -> list[str]:
    """Names of the options of a group of ``conf/``, in order; none where there is no such group."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` where a known word is near, else nothing."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def explained(message: str) -> str:
    """What Hydra says of settings that do not exist, in the words of a user of this project.

    Hydra's own advice is to add them with +, which leads to an error further on.
    """
    if found := NO_SETTING.search(message):
        return _no_setting(found[1])
    if found := NO_ARGUMENT.search(message):
        where = FULL_KEY.search(message)
        owner = where[1] if where else ""
        group = owner.rpartition(".")[2]  # a method holds its support_set, which is set by itself
        owner = group if (CONF_DIR / group).is_dir() else owner
        key = f"{owner}.{found[1]}".strip(".")
        return _no_setting(key)
    if found := NO_CHOICE.search(message):
        group, _, choice = found[1].rpartition("/")
        options = options_of(group)
        if options and group:
            near = did_you_mean(choice, options)
            return f"there is no {group}={choice}{near}; choose one of {', '.join(options)}"
    return message.split("Config search path:")[0]


def _no_setting(key: str) -> str:
    return f"there is no setting {key}{did_you_mean(key, _settings())}; --help lists them"


def _settings() -> list[str]:
    """Dotted names of all settings, and of the groups that are chosen."""
    GlobalHydra.instance().clear()  # the command that failed may have left it composing
    known = [str(path.relative_to(CONF_DIR)) for path in CONF_DIR.rglob("*") if path.is_dir()]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        for name in CONFIGS:
            known += _keys(compose(name), "")
    return known


def _keys(node: Any, prefix: str) -> list[str]:
    keys = []
    for key in node:
        name = f"{prefix}{key}"
        keys.append(name)
        value = None if OmegaConf.is_interpolation(node, key) else node[key]
        if isinstance(value, DictConfig):
            keys += _keys(value, f"{name}.")
    return keys
