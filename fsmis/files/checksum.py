"""SHA-256 of files."""

import hashlib
from functools import cache
from pathlib import Path

from fsmis.errors import UserError


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read again only when its size or time of change differs.

    Raises:
        UserError: it cannot be read.
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
