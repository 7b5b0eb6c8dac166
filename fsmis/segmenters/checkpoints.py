"""Weights into a network: the expected file, strictly, as Meta or transformers publish it."""

import torch

from fsmis.errors import UserError
from fsmis.files.checksum import sha256
from fsmis.files.weights import read_state
from fsmis.segmenters.files import find_checkpoint
from fsmis.segmenters.transformers_names import is_of_transformers, to_meta


def load_weights(model: torch.nn.Module, checkpoint: str, expected_sha256: str | None) -> None:
    """Load a checkpoint into a model, every tensor of it and no other.

    Args:
        model: SAM2's network.
        checkpoint: see ``find_checkpoint``: a file of Meta's (``.pt``, the weights under ``model``
            or as they are), one of this project, or ``model.safetensors`` of transformers.
        expected_sha256: of the file; None: not checked.

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
    state = read_state(path)
    own = model.state_dict()
    if is_of_transformers(state):
        state = to_meta(state, own)
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    wrong += [key for key in state if key not in own]
    if wrong:
        raise UserError(
            f"{path} does not fit segmenter.architecture: {len(wrong)} tensors differ, the first "
            f"is {wrong[0]}; choose the segmenter of the checkpoint's own size and version"
        )
    model.load_state_dict(state)
