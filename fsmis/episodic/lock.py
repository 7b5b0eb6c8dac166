"""Several processes that want the same training: one does it, the others wait."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fsmis.runs import display

POLL_S = 1.0  # between two looks at a lock that another process holds


@contextmanager
def alone(lock_file: Path, does: str) -> Iterator[None]:
    """Let one process at a time into the block; one that waits says so.

    The lock is the operating system's, so it goes with its process, killed or not; the empty file
    stays. On NFS it holds between machines too, but that of a machine that crashed lasts until the
    server has noticed, and what was written inside may be seen seconds later elsewhere.

    Args:
        lock_file: all that contend for the same name the same; its folder is made.
        does: what a process in the block does, as in "another process that trains fold 0".
    """
    lock = FileLock(lock_file, fallback_to_soft=False)
    # a file system without locks, as of some clusters: all go in, as each file is written whole
    with suppress(OSError):
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            display.console.print(f"waiting for another process that {does}")
            lock.acquire(poll_interval=POLL_S)
    try:
        yield
    finally:
        lock.release()
