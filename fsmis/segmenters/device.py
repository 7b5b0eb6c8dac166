"""Where networks compute: device, CPU threads, compilation."""

import os
import sys
from typing import Any

import torch
from torch import Tensor

from fsmis.errors import UserError
from fsmis.settings import require_at_least


def resolve_device(name: str) -> torch.device:
    """The device ``auto`` (CUDA if available, else CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises UserError where this machine has no such device.
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
    """Compile SAM2's encoder now, for batches the size of ``pixels`` ``[B, 3, S, S]``.

    Otherwise the first scan would do it and be timed with it. Weights keep their names. Raises
    UserError where it cannot be compiled on this machine.
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
    """Limit torch's CPU threads in this process to ``count``, at least 1 (UserError).

    None keeps the default: ``OMP_NUM_THREADS``, which joblib sets in its workers to their share of
    the cores, or all cores. May be called before torch is loaded, which takes seconds that not all
    runs need.
    """
    if count is None:
        return
    require_at_least(1, threads=count)
    os.environ["OMP_NUM_THREADS"] = str(count)  # read by torch when it is loaded
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
