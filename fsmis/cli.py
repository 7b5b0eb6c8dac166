"""What all commands share: composed settings, one-line errors, exit codes, near words, --help."""

import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError
from rich.console import Console

from fsmis.errors import UserError

FILE_WIDTH = None if sys.stdout.isatty() else 160  # a file or pipe has no width of its own
console = Console(soft_wrap=True, highlight=False, markup=False, width=FILE_WIDTH)
errors = Console(soft_wrap=True, highlight=False, markup=False, stderr=True)

USER_ERROR, SOME_FAILED = 2, 1  # exit codes; an interrupted command exits with 128 + signal


@contextmanager
def command_line() -> Iterator[None]:
    """End the process with exit code 2 and one line on stderr for errors that the user can mend.

    These are a ``UserError``, even one that Hydra wraps because a constructor raised it, and
    settings that Hydra refuses. ``FSMIS_TRACEBACK=1`` lets errors through with their traceback.
    """
    try:
        yield
    except Exception as error:
        message = _for_user(error)
        if message is None or os.environ.get("FSMIS_TRACEBACK") == "1":
            raise
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from UserError(message)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise UserError, as a command line would print it, in place of Hydra's errors."""
    try:
        yield
    except Exception as error:
        message = _for_user(error)
        if message is None or isinstance(error, UserError):
            raise
        raise UserError(message) from error


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; no ``except Exception`` may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` inside the block on SIGINT and SIGTERM; restores the handlers.

    A SIGTERM that a launcher handles is left to it: submitit ignores the one that announces
    preemption, since Slurm only requeues a job that it had to kill.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    launchers = callable(signal.getsignal(signal.SIGTERM))
    numbers = (signal.SIGINT,) if launchers else (signal.SIGINT, signal.SIGTERM)
    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, interrupt) for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _for_user(error: Exception) -> str | None:
    """What a user can mend, in one line; None for an error of the program."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    if cause is not None:
        return _line(cause)
    if isinstance(error, OverrideParseException):
        return f"{_line(error)}; quote a value with spaces, commas or =, as in \"key='a b'\""
    if lost := NOT_FOUND.search(str(error)):
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        found = f"{lost[1]}: cannot be imported ({_line(reason)})"
        return f"{found}; is PYTHONPATH the folder of your own files?"
    if isinstance(error, HydraException | GrammarParseError | InterpolationResolutionError):
        return _line(explained(str(error)))
    return None


def _line(error: object) -> str:
    return " ".join(str(error).split())


CONF_DIR = Path(__file__).resolve().parents[1] / "conf"
CONFIGS = ("config", "segment")  # whose settings a command line may name
NOT_FOUND = re.compile(r"^Error locating target '([^']+)'")
NO_SETTING = re.compile(r"Could not override '([^'@]+)'")
NO_ARGUMENT = re.compile(r"unexpected keyword argument '(\w+)'")
PLACED = re.compile(r"^  - /(\w+)@(\w+):", re.MULTILINE)
FULL_KEY = re.compile(r"full_key: ([\w.]+)")
NO_CHOICE = re.compile(r"Could not find '([^']+)'")


def options_of(group: str) -> list[str]:
    """Names of the options of a group of ``conf/``, in order; none where there is no such group."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


@cache
def chosen_by(group: str) -> str:
    """What chooses an option of a group: ``matcher=``, ``zoom@method.zoom=`` of one that stands
    within another, ``+test_time=`` of one that is added."""
    for path in sorted(CONF_DIR.glob("*/*.yaml")):
        for found, place in PLACED.findall(path.read_text()):
            if found == group:
                return f"{group}@{path.parent.name}.{place}="
    configs = "".join((CONF_DIR / f"{name}.yaml").read_text() for name in CONFIGS)
    return f"{group}=" if f"\n  - {group}: " in configs else f"+{group}="


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` where a known word is near, else nothing."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def explained(message: str) -> str:
    """Hydra's message on settings that do not exist, in the words of this project.

    Hydra's own advice, to add them with +, leads to a later error.
    """
    if found := NO_SETTING.search(message):
        return no_setting(found[1])
    if found := NO_ARGUMENT.search(message):
        where = FULL_KEY.search(message)
        owner = where[1] if where else ""
        group = owner.rpartition(".")[2]  # a method holds its support_set, which is set by itself
        owner = group if (CONF_DIR / group).is_dir() else owner
        key = f"{owner}.{found[1]}".strip(".")
        return no_setting(key)
    if found := NO_CHOICE.search(message):
        group, _, choice = found[1].rpartition("/")
        options = options_of(group)
        if options and group:
            near = did_you_mean(choice, options)
            return f"there is no {group}={choice}{near}; choose one of {', '.join(options)}"
    return message.split("Config search path:")[0]


def no_setting(key: str) -> str:
    """That there is none of this name, and what may have been meant."""
    if (options := options_of(key)) and (word := chosen_by(key)) != f"{key}=":
        return f"{key} is chosen by {word}X, X one of {', '.join(options)}"
    others = [name for name in _known_settings() if name != key]  # it may be another command's
    return f"there is no setting {key}{did_you_mean(key, others)}; --help lists them"


def _known_settings() -> list[str]:
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


SKIPPED = ("hydra", "training", "data_prep")  # groups that are not chosen in a run


def print_help_and_exit(arguments: Sequence[str], command: str, config: str) -> None:
    """On ``--help`` or ``-h``, print the help and end; ``--help GROUP`` is about a config group.

    ``config`` names the command's configuration in ``conf/``.
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
    words = {group: chosen_by(group) for group in groups}
    width = max(map(len, words.values()))
    lines += [f"  {words[group]:{width}} {', '.join(options_of(group))}" for group in groups]
    lines += ["", f"settings of {config.name} (those of a group: {command} --help GROUP):"]
    lines += [f"  {line}" for line in _shown_settings(config)]
    lines += ["", "-m makes a sweep of lists of values; --cfg job prints all settings as composed;"]
    lines += ["--config-dir DIR adds options of your own; --hydra-help tells of Hydra's flags"]
    return "\n".join(lines)


def _of_group(group: str) -> str:
    """The first comment of every option, and the settings of those that are not made of others."""
    parts = []
    for option in options_of(group):
        path = CONF_DIR / group / f"{option}.yaml"
        parts.append(f"{chosen_by(group)}{option}")
        parts += [f"  # {line}" for line in _leading_comment(path)]
        parts += [f"  {line}" for line in _shown_settings(path)]
    return "\n".join(parts)


def _leading_comment(path: Path) -> list[str]:
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return lines


def _shown_settings(path: Path) -> list[str]:
    """The lines of a YAML that a user may set: no comments on their own, no defaults, no Hydra."""
    lines, block = [], ""
    for line in path.read_text().splitlines():
        if line and not line[0].isspace() and not line.startswith(("#", "-")):
            block = line.split(":")[0]
        told = line.strip() and not line.lstrip().startswith(("#", "_target_"))
        if told and block not in ("defaults", "hydra"):
            lines.append(line)
    return lines
