"""How many images a method passes through its segmenter's encoder, counted without a network."""

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from fsmis.matchers.base import Matcher


def encoder_images(method: DictConfig, served: dict[int, list[int]]) -> int:
    """Images of one episode, at most: distinct query slices, and support slices or their copies.

    Exact for a matcher that reads the encoder's features, and so all copies. Another leaves the
    copies alone that no query slice matches, which only a run can tell. What a feature cache holds
    already is not taken off.

    Args:
        method: its configuration; 0 for one without a segmenter.
        served: query slices that each support slice serves (``served_slices`` of the episode).
    """
    if "segmenter" not in method:
        return 0
    queries = len({query for slices in served.values() for query in slices})
    if "support_set" not in method:
        return queries + len(served)
    support_set = instantiate(method.support_set)
    sizes = {z: support_set.size(len(slices)) for z, slices in served.items()}
    used = sum(min(sizes[z], method.memories * len(slices)) for z, slices in served.items())
    matcher: type[Matcher] = get_class(method.matcher._target_)
    mirrored = queries + used if method.flip else 0
    return queries + (sum(sizes.values()) if matcher.on_features else used) + mirrored
