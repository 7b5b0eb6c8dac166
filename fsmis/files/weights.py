"""Files of weights: read as tensors alone, damaged ones named."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fsmis.errors import UserError


def read_tensors(path: Path) -> dict[str, Any]:
    """What a ``.safetensors`` file, or one that ``torch.save`` wrote, holds; on the CPU.

    Nothing but tensors and plain containers is unpickled (``weights_only=True``).

    Raises:
        UserError: the file is a Git LFS pointer, a web page, torn, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes of some other file lead a parser to
        raise UserError(f"{path} {_what_it_is(path)}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors")
    return loaded


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights of a network by name; those under ``model`` where Meta's files keep them.

    Raises:
        UserError: as ``read_tensors``, or there is something else than tensors.
    """
    loaded = read_tensors(path)
    state = loaded.get("model", loaded)
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} holds no weights of a network by name; give a checkpoint")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path} holds {name!r}, a {type(value).__name__}, where the weights of a network "
                "are tensors by name; give a checkpoint of the weights alone"
            )
    return state


def _what_it_is(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError as error:
        return f"cannot be read ({error.strerror}); check its permissions"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not weights: run `git lfs pull` there"
    if start.startswith((b"<!doctype", b"<html")):
        return "is an HTML page, not weights: download it again"
    return (
        f"({path.stat().st_size} bytes) is not a checkpoint of tensors alone: expected a "
        ".safetensors file, or one that torch.save wrote; check the path or download it again"
    )
