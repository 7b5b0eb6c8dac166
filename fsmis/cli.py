"""What all command lines share: where the configuration lies and how they end on an error."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from fsmis.errors import UserError

CONF_DIR = Path(__file__).resolve().parents[1] / "conf"
USER_ERROR, SOME_FAILED = 2, 1  # exit codes; an interrupted command exits with 128 + signal


@contextmanager
def command_line() -> Iterator[None]:
    """End the process with one line on stderr and exit code 2 where a ``UserError`` is raised.

    The error may be wrapped, as Hydra does where a constructor raises it. The environment variable
    ``FSMIS_TRACEBACK=1`` lets it through with its traceback.
    """
    try:
        yield
    except Exception as error:
        cause = _user_error(error)
        if cause is None or os.environ.get("FSMIS_TRACEBACK") == "1":
            raise
        print(f"error: {' '.join(str(cause).split())}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; no ``except Exception`` may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` inside the block on SIGINT and SIGTERM; restores the handlers."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _user_error(error: BaseException | None) -> UserError | None:
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error
