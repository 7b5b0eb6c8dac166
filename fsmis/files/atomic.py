"""Files written whole or not at all."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fsmis.errors import UserError

if TYPE_CHECKING:  # most that write files draw none
    from matplotlib.figure import Figure


def write_figure(path: Path, figure: Figure, dpi: int = 110) -> None:
    """``write_atomic`` for a figure, in the format that the name ends with."""
    image = io.BytesIO()
    figure.savefig(image, dpi=dpi, format=path.suffix[1:])
    write_atomic(path, image.getvalue())


def write_atomic(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Its folder is made where it is missing.

    Args:
        path: the file.
        content: all of it.
        durable: waits until it is on the disk; without, a power failure may leave a part.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file stays.
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
