"""LPIPS of all pairs twice, with the same weights: the package pair by pair, and ours."""

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fsmis.cli import CONF_DIR
from fsmis.pipeline.matching import to_tensor
from fsmis.pipeline.network_distances import Lpips
from fsmis.tools.bench.workload import Workload


def build(image_size: int, seed: int, device: str = "cpu") -> Lpips:
    """``conf/matcher/lpips.yaml`` with a seeded random backbone; its ``model`` is the package's."""
    config = OmegaConf.load(CONF_DIR / "matcher" / "lpips.yaml")
    return instantiate(
        config, weights="random", image_size=image_size, device=device, seed=seed, cache=None
    )


@torch.inference_mode()
def pairwise_distances(matcher: Lpips, work: Workload) -> np.ndarray:
    """Distances ``[S, N]`` by one call of the package for each pair, images resized once."""
    queries, copies = (
        to_tensor(images, matcher.image_size)[:, None, None].expand(-1, 1, 3, -1, -1)
        for images in (work.queries, work.copies)
    )
    return np.array([[matcher.model(q, c, normalize=True).item() for c in copies] for q in queries])


def all_pairs_distances(matcher: Lpips, work: Workload) -> np.ndarray:
    """The same distances ``[S, N]`` from one backbone pass an image."""
    matcher.fit(work.copies)
    return matcher.distance(work.queries).numpy()


@torch.inference_mode()
def backbone_once(matcher: Lpips, work: Workload) -> None:
    """Only what no path can do without: every image through the backbone."""
    images = to_tensor(np.concatenate([work.queries, work.copies]), matcher.image_size)
    for batch in images[:, None].expand(-1, 3, -1, -1).split(matcher.batch_size):
        matcher.model.net(matcher.model.scaling_layer(2 * batch - 1))
