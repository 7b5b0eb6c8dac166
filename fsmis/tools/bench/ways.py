"""The ways of each stage to one result: the reference first, the floor last, ours before it."""

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fsmis.cli import CONF_DIR
from fsmis.pipeline.matching import to_tensor
from fsmis.pipeline.network_distances import Lpips
from fsmis.tools.bench import two_frame
from fsmis.tools.bench.measure import Network, Way
from fsmis.tools.bench.workload import Workload


class TwoFrame:
    """Stage 3: a session an organ, one session for all organs, ours, floor.

    Args:
        segmenter: of a file in ``conf/segmenter``.
        image_size: side in pixels the networks see.
        seed: of their weights.
    """

    def __init__(self, segmenter: str, image_size: int, seed: int):
        self.ours, self.public = two_frame.build(segmenter, image_size, seed)

    def ways(self, work: Workload) -> list[Way]:
        """The ways on a workload."""
        ours, public, organs = self.ours, self.public, list(range(work.masks.shape[1]))
        alone = [[organ] for organ in organs]
        return [
            Way("public", lambda: two_frame.public_logits(public, work, alone)),
            Way("public, organs together", lambda: two_frame.public_logits(public, work, [organs])),
            Way("ours", lambda: two_frame.shared_logits(ours, work)),
            Way("floor", lambda: two_frame.encode_once(ours, work)),
        ]

    def networks(self) -> list[Network]:
        """What is counted."""
        counted = []
        for model in (self.public, self.ours.model):
            encoder = model.get_submodule("image_encoder")
            attention = model.get_submodule("memory_attention")
            memory = model.get_submodule("memory_encoder")
            counted += [
                Network("image_encodes", encoder, lambda args, _: len(args[0])),
                Network("attention_rows", attention, lambda _, kw: kw["curr"][0].shape[1]),
                Network("memory_rows", memory, lambda args, _: len(args[1])),
            ]
        return counted


class Perceptual:
    """Stage 2, LPIPS: the package pair by pair, ours, floor.

    Args:
        image_size: side in pixels the backbone sees.
        seed: of its weights.
    """

    def __init__(self, image_size: int, seed: int):
        self.matcher = build_lpips(image_size, seed)

    def ways(self, work: Workload) -> list[Way]:
        """The ways on a workload."""
        matcher = self.matcher
        return [
            Way("pairwise", lambda: pairwise_distances(matcher, work)),
            Way("ours", lambda: all_pairs_distances(matcher, work)),
            Way("floor", lambda: backbone_once(matcher, work)),
        ]

    def networks(self) -> list[Network]:
        """What is counted."""
        # The package calls the backbone past its hooks, but not the first layers.
        first = self.matcher.model.net.slice1
        return [Network("backbone_images", first, lambda args, _: len(args[0]))]


def build_lpips(image_size: int, seed: int, device: str = "cpu") -> Lpips:
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
