"""Where networks compute: device, CPU threads, compilation."""

import os
import sys
from typing import Any

import torch
from torch import Tensor

from fsmis.errors import UserError
from fsmis.settings import require_at_least


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


def compile_encoder(model: Any, pixels: Tensor) -> None:
    """Compile it here, for batches of this one size, and not in the first scan, which is timed.

    Weights keep their names.

    Args:
        model: SAM2's network (``SAM2Base``).
        pixels: a batch ``[B, 3, S, S]`` to try it with.

    Raises:
        UserError: it cannot be compiled on this machine.
    """
    # The trunk alone: the neck fills a dict of position encodings in its first pass, for which its
    # second would be compiled anew.
    model.image_encoder.trunk.compile(fullgraph=True, dynamic=False)
    try:
        model.forward_image(pixels)
    except RuntimeError as error:  # what all errors of torch.compile are
        reason = str(error).strip().split("\n\n")[0]
        raise UserError(
            f"segmenter.compile=true: torch.compile fails on {pixels.device} ({reason}); install "
            "a C++ compiler, and triton for CUDA, or set segmenter.compile=false"
        ) from error


def limit_threads(count: int | None) -> None:
    """Let torch use so many CPU threads in this process; None leaves it to its surroundings.

    These are ``OMP_NUM_THREADS``, which joblib sets in its workers to their share of the cores, or
    else all cores. May be called before torch is loaded, which takes seconds not all runs need.

    Raises:
        UserError: below 1.
    """
    if count is None:
        return
    require_at_least(1, threads=count)
    os.environ["OMP_NUM_THREADS"] = str(count)  # read by torch when it is loaded
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
