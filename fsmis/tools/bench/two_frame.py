"""Stage 3 twice, with the same weights: the public predictor over files, and ours in memory."""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from torch import nn

from fsmis.cli import CONF_DIR
from fsmis.pipeline.prompting import Prompts, segment_prompted
from fsmis.segmenters.sam2 import Sam2, build_sam2
from fsmis.tools.bench.workload import GREYS, Workload

# As the sam2 package names it, and transformers.
OBJECT_SCORE_BIAS = ("pred_obj_score_head.layers.2.bias", "pred_obj_score_head.proj_out.bias")

# The public loader's normalisation of [0, 1] pixels, which it lets nobody choose.
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def build(name: str, image_size: int, seed: int) -> tuple[Sam2, nn.Module]:
    """Our segmenter and ``SAM2VideoPredictor``, on the CPU, with one set of random weights.

    Args:
        name: of a file in ``conf/segmenter``, such as ``sam2.1_tiny``.
        image_size: side in pixels both networks see.
        seed: of the weights.
    """
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
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
    as_public = {
        "image_size": image_size,
        "_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor",
        "fill_hole_area": 8,  # as build_sam2_video_predictor has it
    }
    public = build_sam2(config.architecture, {**as_public, **config.overrides})
    public.load_state_dict(ours.model.state_dict())
    return ours, public.requires_grad_(False)


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
    with tempfile.TemporaryDirectory() as folder, _quiet():
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
                logits[query, organs] = masks[:, 0].numpy()
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
def _quiet() -> Iterator[None]:
    """Without progress bars, and without warnings of a CUDA kernel that PyPI's sam2 lacks."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
