"""Settings of commands: types, what a command line may replace, the organs selected, threads."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, InterpolationKeyError, ValidationError

from fsmis.cli import CONF_DIR, chosen_by, did_you_mean, no_setting, user_errors
from fsmis.errors import UserError


@dataclass
class WandbSettings:
    """Tracking, in ``conf/config.yaml``."""

    mode: str
    project: str
    group: str | None
    timeout: float


@dataclass
class RunSettings:
    """Settings in ``conf/config.yaml``."""

    organs: list[str] | None
    predictions: str | None
    known_as: str | None
    results_dir: str
    seed: int
    device: str
    figures: str
    worst_figures: int
    figure_slices: int
    save_predictions: bool
    force: bool
    shard: str | None
    threads: int | None
    cache: dict[str, Any]
    wandb: WandbSettings


@dataclass
class SegmentSettings:
    """Settings in ``conf/segment.yaml``."""

    seed: int
    device: str
    threads: int | None
    size: int
    window: list[float] | None
    auto_window: bool
    percentiles: list[float]
    support_slices: int | None
    support_area: float
    doubt_below: float
    unlike: float
    dicom_seg: bool
    figure_slices: int


def converted(cfg: DictConfig, types: type[RunSettings] | type[SegmentSettings]) -> DictConfig:
    """The configuration converted to ``types``; UserError for a value such as ``force=flase``."""
    typed = OmegaConf.structured(types)
    for name in [field.name for field in fields(types)]:
        try:
            OmegaConf.update(typed, name, cfg[name], merge=True)
        except ConfigKeyError as error:
            raise UserError(f"{error.full_key}: no such setting; check its spelling") from error
        except ValidationError as error:
            key = error.full_key or name
            value = OmegaConf.select(cfg, key)
            raise UserError(f"{key}={value}: {str(error.msg).splitlines()[0]}") from error
    merged = OmegaConf.merge(cfg, OmegaConf.to_container(typed))
    assert isinstance(merged, DictConfig)
    return merged


def require_known(
    cfg: DictConfig, types: type[RunSettings] | type[SegmentSettings], choices: Mapping[str, str]
) -> None:
    """Refuse (UserError) what nothing reads: keys that were added, and groups that were added to
    the configuration and not where they stand, as ``+zoom=none``.

    ``choices`` is the choice in each group.
    """
    groups = {group for group in choices if "@" not in chosen_by(group)}
    if unknown := set(cfg) - set(types.__annotations__) - groups:
        raise UserError(no_setting(min(map(str, unknown))))


def named(cfg: DictConfig, choices: Mapping[str, str]) -> str:
    """The method's name in folders and tables: ``known_as``, or its choice."""
    return cfg.known_as or choices["method"]


def require_at_least(lowest: int, **values: int) -> None:
    """Refuse (UserError) numbers below the lowest that makes sense."""
    for name, value in values.items():
        if value < lowest:
            raise UserError(f"{name}={value}: choose {lowest} or more")


def limit_threads(count: int | None) -> None:
    """Limit torch's CPU threads in this process to ``count``, at least 1 (UserError).

    None keeps the default: ``OMP_NUM_THREADS``, which joblib sets in its workers to their share of
    the cores, or all cores. May be called before torch is loaded, which takes seconds that not all
    runs need.
    """
    if count is None:
        return
    require_at_least(1, threads=count)
    os.environ["OMP_NUM_THREADS"] = str(count)  # read by torch when it is loaded
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


@contextmanager
def composing() -> Iterator[None]:
    """Hydra for ``conf``, whatever else has it in this process, as ``sam2`` once it is imported."""
    held = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().clear()
        if held is not None:
            GlobalHydra.instance().initialize(held)


def composed(overrides: Sequence[str]) -> DictConfig:
    """The settings of ``conf/config.yaml`` with the user's, for what is measured beside a run.

    Raises UserError as a run does for organs and mappings; limits the threads as a run does.
    """
    with composing():
        cfg = with_selected_organs(compose("config", overrides=list(overrides)))
    require_replacing(overrides, cfg)
    limit_threads(cfg.threads)
    return cfg


def settings_of(overrides: Sequence[str]) -> DictConfig:
    """The settings of ``conf/segment.yaml`` with the user's.

    Raises:
        UserError: one is none, or out of its range.
    """
    overrides = list(overrides)
    with user_errors(), composing():
        cfg = compose("segment", overrides=overrides, return_hydra_config=True)
    choices = dict(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg.hydra
    cfg = converted(cfg, SegmentSettings)
    require_known(cfg, SegmentSettings, choices)
    require_replacing(overrides, cfg)
    try:
        OmegaConf.resolve(cfg)
    except InterpolationKeyError as error:
        raise UserError(
            f"method={choices['method']}: works on the folds of a dataset (python -m fsmis run); "
            "choose another method"
        ) from error
    require_at_least(1, size=cfg.size, figure_slices=cfg.figure_slices)
    if cfg.support_slices is not None:
        require_at_least(1, support_slices=cfg.support_slices)
    if not 0 <= cfg.support_area <= 1:
        raise UserError(f"support_area={cfg.support_area:g}: give a share, 0 to 1")
    if cfg.window is not None and (len(cfg.window) != 2 or not cfg.window[0] < cfg.window[1]):
        raise UserError(f"window={cfg.window}: give the lowest and the highest intensity kept")
    return cfg


TARGET = "_target_"


def require_replacing(overrides: Sequence[str], cfg: DictConfig) -> None:
    """Refuse ``dataset.organs={liver:1}``: Hydra merges it, and the other organs stay.

    The settings of a class, as in ``method.volume_pass={reach:0}``, may be given in part. A mapping
    that is an argument of a class, with names or label ids as keys, has to be given as a whole:
    UserError where an override leaves keys that it does not name. ``cfg`` is composed already.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        if override.is_add() or not isinstance(value, dict):
            continue
        parent = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
        for mapping, left in _left(OmegaConf.select(cfg, key), value, key, _is_class(parent)):
            advice = f"in place of all: '~{mapping}' '+{mapping}={{...}}'"
            if mapping == "dataset.organs":
                advice = f"to score some of them: organs=[{','.join(map(str, value))}]; {advice}"
            raise UserError(
                f"{override.input_line}: Hydra adds a mapping to the one that is there, so "
                f"{', '.join(left)} would stay; {advice}"
            )


def _left(
    node: Any, value: dict[Any, Any], key: str, is_argument: bool
) -> Iterator[tuple[str, list[str]]]:
    """Mappings that ``value`` was merged into, and the keys in each that it does not name."""
    if not isinstance(node, DictConfig):
        return
    named = {str(name) for name in value}
    left = [str(name) for name in node if str(name) not in named]
    if is_argument and left and not _is_class(node):
        yield key, left
    for name, item in value.items():
        if isinstance(item, dict) and name in node:
            yield from _left(node[name], item, f"{key}.{name}", _is_class(node))


def _is_class(node: Any) -> bool:
    return isinstance(node, DictConfig) and TARGET in node


def with_selected_organs(cfg: DictConfig) -> DictConfig:
    """The configuration with the dataset reduced to the selected ``organs`` (null: all).

    A run of a selection is thus one of a dataset without the other organs; their labels stay valid
    but are not scored. Applying it twice changes nothing. Raises UserError for an organ that the
    dataset lacks or that is named twice, or an empty selection.
    """
    selected = cfg.get("organs")
    if selected is None:
        return cfg
    dataset = cfg.dataset
    known = dict(dataset.organs)
    unknown = [organ for organ in selected if organ not in known]
    if unknown or not selected or len(set(selected)) < len(selected):
        near = "".join(did_you_mean(str(organ), map(str, known)) for organ in unknown[:1])
        raise UserError(
            f"organs=[{','.join(map(str, selected))}]: give some of {', '.join(map(str, known))}, "
            f"each once, which are those of {dataset.name}, or null for all{near}"
        )
    others = {value for organ, value in known.items() if organ not in selected}
    unscored = others | set(dataset.get("unscored_labels") or [])
    changed = deepcopy(cfg)
    for key, value in (
        ("organs", {organ: known[organ] for organ in known if organ in selected}),
        ("unscored_labels", sorted(unscored)),
    ):
        OmegaConf.update(changed, f"dataset.{key}", value, merge=False, force_add=True)
    return changed
