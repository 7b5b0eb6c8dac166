"""Settings of a command line that Hydra takes without an error, and that do something else."""

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from fsmis.errors import UserError

TARGET = "_target_"


def require_replacing(overrides: Sequence[str], cfg: DictConfig) -> None:
    """Refuse ``dataset.organs={liver:1}``: Hydra merges it, and the other organs stay.

    Settings of a class, as in ``method.volume_pass={reach:0}``, may be given in part. A mapping
    that is an argument of one has names or label ids for keys, and is given as a whole.

    Args:
        overrides: as on the command line.
        cfg: what they have led to.

    Raises:
        UserError: one of them leaves keys of such a mapping that it does not name.
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
