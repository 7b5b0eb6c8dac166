"""What all command lines share: where the configuration lies and how they end on an error."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import GrammarParseError, InterpolationResolutionError

from fsmis.errors import UserError
from fsmis.suggestions import CONF_DIR as CONF_DIR
from fsmis.suggestions import explained

USER_ERROR, SOME_FAILED = 2, 1  # exit codes; an interrupted command exits with 128 + signal


@contextmanager
def command_line() -> Iterator[None]:
    """End the process with one line on stderr and exit code 2 where the user has to mend something.

    That is where a ``UserError`` is raised, maybe wrapped, as Hydra does where a constructor raises
    it, or where Hydra refuses the settings. The line's text is that of the exit's cause. The
    environment variable ``FSMIS_TRACEBACK=1`` lets errors through with their traceback.
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


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; no ``except Exception`` may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` inside the block on SIGINT and SIGTERM; restores the handlers.

    A SIGTERM that a launcher handles stays with it: submitit passes over the one that announces
    preemption, as Slurm queues again only a job that it had to kill.
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
    """What a user can do something about, in one line; None for an error of the program."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    if cause is not None:
        return _line(cause)
    if isinstance(error, OverrideParseException):
        return f"{_line(error)}; quote a value with spaces, commas or =, as in \"key='a b'\""
    if isinstance(error, HydraException | GrammarParseError | InterpolationResolutionError):
        return _line(explained(str(error)))
    return None


def _line(error: object) -> str:
    return " ".join(str(error).split())
