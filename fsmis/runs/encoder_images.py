"""How many images a method passes through its segmenter's encoder, counted without a network."""

from collections.abc import Mapping

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from fsmis.matchers.base import Matcher

Served = Mapping[int, list[int]]  # the query slices that each support slice serves


def encoder_images(method: DictConfig, served: Mapping[str, Served]) -> int:
    """Images of one episode, at most: distinct query slices, and support slices or their copies;
    with zoom the same again for each organ and pass.

    Exact for a matcher that reads the encoder's features, and so all copies, without zoom. Another
    leaves the copies alone that no query slice matches, and zoom the organs that were not found or
    share their crops, which only a run can tell. What a feature cache holds already is not taken
    off.

    Args:
        method: its configuration; 0 for one without a segmenter.
        served: of each organ (``served_slices`` of the episode with its task alone).
    """
    if "segmenter" not in method:
        return 0
    together: dict[int, set[int]] = {}
    for of_organ in served.values():
        for z, slices in of_organ.items():
            together.setdefault(z, set()).update(slices)
    whole = {z: sorted(slices) for z, slices in together.items()}
    images = _images(method, whole)
    if "zoom" in method:
        images += method.zoom.passes * sum(_images(method, of) for of in served.values())
    if "scale" in method and method.scale.scales:
        few = sum(
            min(method.scale.slices, sum(len(slices) for slices in of.values()))
            for of in served.values()
        )
        images += (1 + len(method.scale.scales)) * (few + len(whole))
    return images


def _images(method: DictConfig, served: Served) -> int:
    """Images of one pass, over whole slices or over crops."""
    queries = len({query for slices in served.values() for query in slices})
    if "support_set" not in method:
        return queries + len(served)
    support_set = instantiate(method.support_set)
    sizes = {z: support_set.size(len(slices)) for z, slices in served.items()}
    used = sum(min(sizes[z], method.memories * len(slices)) for z, slices in served.items())
    matcher: type[Matcher] = get_class(method.matcher._target_)
    mirrored = queries + used if method.flip else 0
    return queries + (sum(sizes.values()) if matcher.on_features else used) + mirrored
