"""Training-free few-shot medical image segmentation with SAM2: benchmark and reproduction.

What users call, imported when it is first asked for:

- ``segment_volume``, ``VolumeSegmenter``: label whole volumes from a few labelled slices;
- ``Dataset``, ``Episode``: prepared scans, and what a method is asked;
- ``Method``, ``Matcher``: the base classes of one's own;
- ``read_runs``: finished runs with their scores.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsmis.api import VolumeSegmenter as VolumeSegmenter
    from fsmis.api import segment_volume as segment_volume
    from fsmis.data.dataset import Dataset as Dataset
    from fsmis.data.protocol import Episode as Episode
    from fsmis.methods import Method as Method
    from fsmis.pipeline.matching import Matcher as Matcher
    from fsmis.reporting.runs import read_runs as read_runs

_HOME = {
    "segment_volume": "fsmis.api",
    "VolumeSegmenter": "fsmis.api",
    "Dataset": "fsmis.data.dataset",
    "Episode": "fsmis.data.protocol",
    "Method": "fsmis.methods",
    "Matcher": "fsmis.pipeline.matching",
    "read_runs": "fsmis.reporting.runs",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
