"""How many cores one process takes: several on a machine must share them."""

import os
import sys

from fsmis.settings import require_at_least


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
