"""The settings that commands read themselves, with their types; conf/ has values and meanings.

The other settings are arguments of constructors, which check them.
"""

from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError

from fsmis.errors import UserError


@dataclass
class WandbSettings:
    """Of tracking, in ``conf/config.yaml``."""

    mode: str
    project: str
    group: str | None
    timeout: float


@dataclass
class RunSettings:
    """Of ``conf/config.yaml``."""

    organs: list[str] | None
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
    """Of ``conf/segment.yaml``."""

    seed: int
    device: str
    size: int
    window: list[float] | None
    auto_window: bool
    percentiles: list[float]
    figure_slices: int


def converted(cfg: DictConfig, types: type[RunSettings] | type[SegmentSettings]) -> DictConfig:
    """The configuration with the settings of ``types`` brought to their types.

    Raises:
        UserError: a value is of another type, such as ``force=flase``.
    """
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


def require_at_least(lowest: int, **values: int) -> None:
    """Refuse numbers below the lowest that makes sense.

    Raises:
        UserError: one is.
    """
    for name, value in values.items():
        if value < lowest:
            raise UserError(f"{name}={value}: choose {lowest} or more")
