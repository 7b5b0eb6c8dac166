"""The help of commands whose settings lie in ``conf/``: the settings with their own comments."""

import sys
from collections.abc import Sequence
from pathlib import Path

from fsmis.suggestions import CONF_DIR, did_you_mean, options_of

SKIPPED = ("hydra", "training", "data_prep", "episodic")  # groups that are not chosen in a run


def print_help_and_exit(arguments: Sequence[str], command: str, config: str) -> None:
    """Where ``--help`` or ``-h`` is asked for, print it and end; ``--help GROUP`` tells of a group.

    Args:
        arguments: of the command line.
        command: as the user called it.
        config: name of the command's configuration in ``conf/``.
    """
    asked = [i for i, argument in enumerate(arguments) if argument in ("--help", "-h")]
    if not asked:
        return
    groups = sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir())
    groups = [group for group in groups if group not in SKIPPED]
    topic = arguments[asked[0] + 1] if len(arguments) > asked[0] + 1 else None
    if topic is None:
        print(_overview(command, CONF_DIR / f"{config}.yaml", groups))
    elif topic in groups:
        print(_of_group(topic))
    else:
        print(
            f"error: there is no group {topic}{did_you_mean(topic, groups)}; choose one of "
            f"{', '.join(groups)}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    raise SystemExit(0)


def _overview(command: str, config: Path, groups: list[str]) -> str:
    lines = [
        f"usage: {command} [GROUP=OPTION ...] [KEY=VALUE ...] [-m] [--config-dir DIR]",
        "",
        *_leading_comment(config),
        "",
        "groups, and their options:",
    ]
    lines += [f"  {group + '=':14} {', '.join(options_of(group))}" for group in groups]
    lines += ["", f"settings of {config.name} (those of a group: {command} --help GROUP):"]
    lines += [f"  {line}" for line in _settings(config)]
    lines += ["", "-m makes a sweep of lists of values; --cfg job prints all settings as composed;"]
    lines += ["--config-dir DIR adds options of your own; --hydra-help tells of Hydra's flags"]
    return "\n".join(lines)


def _of_group(group: str) -> str:
    """The first comment of every option, and the settings of those that are not made of others."""
    parts = []
    for option in options_of(group):
        path = CONF_DIR / group / f"{option}.yaml"
        parts.append(f"{group}={option}")
        parts += [f"  # {line}" for line in _leading_comment(path)]
        parts += [f"  {line}" for line in _settings(path)]
    return "\n".join(parts)


def _leading_comment(path: Path) -> list[str]:
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return lines


def _settings(path: Path) -> list[str]:
    """The lines of a YAML that a user may set: no comments on their own, no defaults, no Hydra."""
    lines, block = [], ""
    for line in path.read_text().splitlines():
        if line and not line[0].isspace() and not line.startswith(("#", "-")):
            block = line.split(":")[0]
        told = line.strip() and not line.lstrip().startswith(("#", "_target_"))
        if told and block not in ("defaults", "hydra"):
            lines.append(line)
    return lines
