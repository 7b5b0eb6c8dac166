"""Files: written whole or not at all, checksums, names from ids, the time, signs of life."""

from __future__ import annotations

import hashlib
import io
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsmis.errors import UserError

if TYPE_CHECKING:  # most that write files draw none
    from matplotlib.figure import Figure


def write_figure(path: Path, figure: Figure, dpi: int = 110) -> None:
    """``write_atomic`` for a figure, in the format of the path's suffix."""
    image = io.BytesIO()
    figure.savefig(image, dpi=dpi, format=path.suffix[1:])
    write_atomic(path, image.getvalue())


def write_atomic(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    A missing folder is made. Without ``durable``, which waits for the disk, a power failure may
    leave a part. Raises UserError where the folder cannot be written or the disk is full; the old
    file stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=".", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(0o644)  # a temporary file is private, a result is not
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder, "
            "then run the same command again"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read again only when its size or time of change differs.

    Raises UserError where it cannot be read.
    """
    try:
        stat = path.stat()
        return _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from error


@cache
def _sha256(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


LONGEST = 100  # characters of a name
# No separator, no parent folder, nothing hidden, no end that a file system drops.
NAME = re.compile(r"\w([\w .,+()=-]*[\w+)])?")


def counted(name: str) -> list[tuple[int, str]]:
    """Key that sorts names as people count: ``2`` before ``10``, ``pat2`` before ``pat10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts if part]


def walked(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from ``root`` downwards with the names of its files, in the order of their
    names; folders that are links too, each once."""
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above, or one linked twice
            below.clear()
            continue
        seen.add(real)
        below.sort()
        yield Path(folder), sorted(names)


def require_name(key: str, name: Any, longest: int = LONGEST) -> str:
    """Return a name that is safe as part of a path; ``key`` is its setting, for the message.

    Raises UserError unless it is text of letters, digits, spaces and a few signs, and not too long.
    """
    if not isinstance(name, str) or len(name) > longest or NAME.fullmatch(name) is None:
        raise UserError(
            f"{key}={name!r}: it names files and folders; use up to {longest} letters, digits, "
            "spaces and . , _ + ( ) = -, with a letter or digit at either end"
        )
    return name


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


BEAT_S = 10.0  # between two touches
SILENT_S = 120.0  # without a touch: far more than a beat, for clocks and file systems that lag


def author() -> dict[str, Any]:
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
    """Why the process ``by`` that should touch a file counts as lost; None where it lives."""
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
