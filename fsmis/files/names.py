"""Names that become part of a path: of datasets, methods, organs, scans, files of a manifest."""

import re
from typing import Any

from fsmis.errors import UserError

NAME = re.compile(r"\w([\w .,+()=-]{0,98}[\w+)])?")  # no separator, nothing hidden, no parent folder


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
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise UserError(
            f"{key}={name!r}: it names files and folders; use up to 100 letters, digits, spaces and "
            ". , _ + ( ) = -, with a letter or digit at either end"
        )
    return name
