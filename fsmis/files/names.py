"""Names that become part of a path: of datasets, methods, organs, scans, files of a manifest."""

import re
from typing import Any

from fsmis.errors import UserError

LONGEST = 100  # characters of a name
# No separator, no parent folder, nothing hidden, no end that a file system drops.
NAME = re.compile(r"\w([\w .,+()=-]*[\w+)])?")


def counted(name: str) -> list[tuple[int, str]]:
    """Key that sorts names as people count: ``2`` before ``10``, ``pat2`` before ``pat10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts if part]


def require_name(key: str, name: Any) -> str:
    """Refuse a name that leads elsewhere as part of a path, or that a file system does not take.

    Args:
        key: setting or field that has it, for the message.
        name: as given.

    Returns:
        The name.

    Raises:
        UserError: it is no text of letters, digits, spaces and a few signs, or too long.
    """
    if not isinstance(name, str) or len(name) > LONGEST or NAME.fullmatch(name) is None:
        raise UserError(
            f"{key}={name!r}: it names files and folders; use up to {LONGEST} letters, digits, "
            "spaces and . , _ + ( ) = -, with a letter or digit at either end"
        )
    return name
