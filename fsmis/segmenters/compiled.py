"""SAM2's image encoder through ``torch.compile``."""

from typing import Any

from torch import Tensor

from fsmis.errors import UserError


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
