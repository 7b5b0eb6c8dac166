"""Signs of life: a process touches the file of the scan it computes, so that its end is seen.

A killed process cannot say so. Whoever reads the record judges: lost where the process is gone from
this machine, or, wherever it ran, where the file was not touched for ``SILENT_S``.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BEAT_S = 10.0  # between two touches
SILENT_S = 120.0  # without a touch: far more than a beat, for clocks and file systems that lag


def author() -> dict[str, Any]:
    """``pid`` and ``host`` of this process."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """Touch a file every ``BEAT_S`` seconds inside the block."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            with suppress(OSError):  # a beat missed is made up for by the next
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def lost(path: Path, by: dict[str, Any]) -> str | None:
    """Why the process that should be touching a file counts as lost; None where it lives.

    Args:
        path: the file.
        by: ``author`` of the process.
    """
    if by.get("host") == socket.gethostname() and not _exists(by.get("pid")):
        return f"process {by.get('pid')} is gone"
    with suppress(FileNotFoundError):  # it has just ended
        silence = time.time() - path.stat().st_mtime
        if silence > SILENT_S:
            return f"process {by.get('pid')} on {by.get('host')} silent for {silence:.0f} s"
    return None


def _exists(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:  # it is someone else's
        return True
    return True
