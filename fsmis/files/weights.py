"""Files of weights: read as tensors alone, damaged ones named."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

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
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path} {_what_it_is(path)}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors")
    return loaded


def _what_it_is(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not weights: run `git lfs pull` there"
    if start.startswith((b"<!doctype", b"<html")):
        return "is an HTML page, not weights: download it again"
    return f"({path.stat().st_size} bytes) is not a checkpoint of tensors alone: download it again"
