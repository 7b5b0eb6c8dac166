"""The ways of each stage to one result: the reference first, the floor last, ours before it.

Those in bfloat16, an approximation, come before these two.
"""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import nn

from fsmis.cli import CONF_DIR
from fsmis.pipeline.distances import Lpips
from fsmis.pipeline.matching import to_tensor
from fsmis.pipeline.prompting import Prompts, segment_prompted
from fsmis.segmenters.sam2 import Sam2, build_sam2
from fsmis.settings import composing
from fsmis.tools.bench import GREYS, OURS_ROUNDED, ROUNDED, TOGETHER, Workload
from fsmis.tools.bench.measure import Network, Way
from fsmis.tools.doctor import computes_in_bfloat16


class TwoFrame:
    """Stage 3: a session an organ, one session for all organs, ours, floor.

    The second and the third in bfloat16 too, on a CPU that computes in it.

    Args:
        segmenter: of a file in ``conf/segmenter``.
        image_size: side in pixels the networks see.
        seed: of their weights.
    """

    def __init__(self, segmenter: str, image_size: int, seed: int):
        self.ours, self.public = build_twins(segmenter, image_size, seed)

    def ways(self, work: Workload, bfloat16: bool = True) -> list[Way]:
        """The ways on a workload, those in bfloat16 if wanted."""
        ours, public, organs = self.ours, self.public, list(range(work.masks.shape[1]))
        alone = [[organ] for organ in organs]
        exact = [
            Way("public", lambda: public_logits(public, work, alone)),
            Way(TOGETHER, lambda: public_logits(public, work, [organs])),
            Way("ours", lambda: shared_logits(ours, work)),
            Way("floor", lambda: encode_once(ours, work)),
        ]
        if not (bfloat16 and computes_in_bfloat16()):
            return exact

        def public_rounded() -> np.ndarray:
            with torch.autocast("cpu", torch.bfloat16):
                return public_logits(public, work, [organs])

        def ours_rounded() -> np.ndarray:
            ours.precision = torch.bfloat16
            try:
                return shared_logits(ours, work)
            finally:
                ours.precision = torch.float32

        rounded = [Way(f"{TOGETHER}{ROUNDED}", public_rounded), Way(OURS_ROUNDED, ours_rounded)]
        return [*exact[:2], *rounded, *exact[2:]]

    def networks(self) -> list[Network]:
        """What is counted."""
        return sam2_networks(self.public) + sam2_networks(self.ours.model)


def sam2_networks(model: nn.Module) -> list[Network]:
    """What is counted of a model of SAM2."""
    encoder = model.get_submodule("image_encoder")
    attention = model.get_submodule("memory_attention")
    memory = model.get_submodule("memory_encoder")
    return [
        Network("image_encodes", encoder, lambda args, _: len(args[0])),
        Network("attention_rows", attention, lambda _, kw: kw["curr"][0].shape[1]),
        Network("memory_rows", memory, lambda args, _: len(args[1])),
    ]


# As the sam2 package names it, and transformers.
OBJECT_SCORE_BIAS = ("pred_obj_score_head.layers.2.bias", "pred_obj_score_head.proj_out.bias")

# The public loader's normalisation of [0, 1] pixels, which it lets nobody choose.
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def build_twins(name: str, image_size: int, seed: int) -> tuple[Sam2, nn.Module]:
    """Our segmenter and ``SAM2VideoPredictor``, on the CPU, with one set of random weights.

    Args:
        name: of a file in ``conf/segmenter``, such as ``sam2.1_tiny``.
        image_size: side in pixels both networks see.
        seed: of the weights.
    """
    with composing():
        config = compose("config", overrides=[f"segmenter={name}"]).segmenter
    ours = instantiate(
        config,
        checkpoint="random",
        sha256=None,
        image_size=image_size,
        device="cpu",
        seed=seed,
        cache=None,
        **IMAGENET,
    )
    make_responsive(ours.model, seed)
    return ours, public_twin(ours, config)


def public_twin(ours: Sam2, config: DictConfig) -> Any:
    """``SAM2VideoPredictor`` with the weights of a segmenter that was built from ``config``."""
    as_public = {
        "image_size": ours.image_size,
        "_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor",
        "fill_hole_area": 8,  # as build_sam2_video_predictor has it
    }
    public = build_sam2(config.architecture, {**as_public, **config.overrides})
    public.load_state_dict(ours.model.state_dict())
    return public.requires_grad_(False)


@torch.no_grad()
def make_responsive(model: Any, seed: int) -> None:
    """Let random weights answer to image and mask.

    As initialised, they say "no object" everywhere, and any two implementations agree.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weights in model.named_parameters():
        noise = torch.randn(weights.shape, generator=generator).to(weights.device)
        if weights.ndim == 1 or "pos" in name or "embed" in name:
            weights += 0.1 * noise
        if "cross_attn" in name or "output_hypernetworks" in name:
            weights *= 2
        if name.endswith(OBJECT_SCORE_BIAS):
            weights.fill_(5)


def public_logits(predictor: Any, work: Workload, sessions: list[list[int]]) -> np.ndarray:
    """Logits ``[S, K, H, W]`` as the package's own example makes them.

    Frames are written once for each slice, losslessly under the name of a JPEG, so that both paths
    see the same pixels.

    Args:
        predictor: a ``SAM2VideoPredictor``.
        work: slices, copies and masks.
        sessions: organs that share a session, for each session of a slice.
    """
    logits = np.empty((len(work.queries), *work.masks.shape[1:]), np.float32)
    with tempfile.TemporaryDirectory() as folder, quiet():
        for query, copy in enumerate(work.matched):
            for frame, image in enumerate((work.copies[copy], work.queries[query])):
                pixels = (image * GREYS).round().astype(np.uint8)
                path = Path(folder) / f"{frame:05d}.jpg"
                Image.fromarray(pixels).save(path, format="PNG", compress_level=1)
            for organs in sessions:
                state = predictor.init_state(folder)
                for organ in organs:
                    predictor.add_new_mask(
                        state, frame_idx=0, obj_id=organ, mask=work.masks[copy, organ]
                    )
                *_, (_, _, masks) = predictor.propagate_in_video(state)
                logits[query, organs] = masks[:, 0].float().numpy()
    return logits


def shared_logits(segmenter: Sam2, work: Workload) -> np.ndarray:
    """The same logits ``[S, K, H, W]``, each image encoded once."""
    copies, compact = np.unique(work.matched, return_inverse=True)
    organs = work.masks.shape[1]
    prompts = Prompts(
        memory_copy=np.repeat(np.arange(len(copies)), organs),
        memory_mask=work.masks[copies].reshape(-1, *work.masks.shape[2:]),
        row_query=np.repeat(np.arange(len(work.queries)), organs),
        row_memory=(compact[:, None] * organs + np.arange(organs)).reshape(-1, 1),
    )
    queries = segmenter.encode(work.queries)
    features = segmenter.encode(work.copies[copies])
    logits = segment_prompted(segmenter, queries, features, prompts).gated
    return logits.reshape(len(work.queries), *work.masks.shape[1:])


def encode_once(segmenter: Sam2, work: Workload) -> None:
    """Only what no path can do without: every distinct image through the encoder."""
    segmenter.encode(np.concatenate([work.queries, work.copies[np.unique(work.matched)]]))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars, and without warnings, as of a CUDA kernel that PyPI's sam2 lacks."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
