"""Weights into a network: checked, strictly, nothing but tensors unpickled."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fsmis.errors import UserError
from fsmis.segmenters.files import find_checkpoint, sha256


def load_weights(model: torch.nn.Module, checkpoint: str, expected_sha256: str | None) -> None:
    """Load a checkpoint into a model, strictly; nothing but tensors is unpickled.

    Raises:
        UserError: the file is missing, not a checkpoint, not the one expected, or of another
            architecture.
    """
    path = find_checkpoint(checkpoint)
    if expected_sha256 and sha256(path) != expected_sha256:
        raise UserError(
            f"{path} has SHA-256 {sha256(path)}, expected {expected_sha256}: download it again, or "
            "set segmenter.sha256=null to use it as it is"
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            state = loaded.get("model", loaded)
    except (SafetensorError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        raise UserError(_not_a_checkpoint(path)) from error
    except Exception as error:  # pickle raises a type of its own that torch does not export
        if type(error).__name__ != "UnpicklingError":
            raise
        raise UserError(_not_a_checkpoint(path)) from error
    own = model.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    wrong += [key for key in state if key not in own]
    if wrong:
        raise UserError(
            f"{path} does not fit segmenter.architecture: {len(wrong)} tensors differ, the first "
            f"is {wrong[0]}; choose the segmenter of the checkpoint's own size and version"
        )
    model.load_state_dict(state)


def _not_a_checkpoint(path: Path) -> str:
    start = path.open("rb").read(64)
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not weights: run `git lfs pull` there"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return f"{path} is an HTML page, not weights: download it again"
    size = path.stat().st_size
    return f"{path} ({size} bytes) is not a checkpoint of tensors alone: download it again"
