"""Where a network runs."""

import torch

from fsmis.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device called ``auto`` (CUDA when there is one, else CPU), ``cpu``, ``cuda``, ``cuda:N``
    or ``mps``.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} is not available here; use device=cpu or auto") from error
    return device
