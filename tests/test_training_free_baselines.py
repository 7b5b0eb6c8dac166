"""The training-free baselines on phantoms, and on slices whose answer is known."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsmis.bench.two_frame import build as build_twins
from fsmis.datasets import Scan
from fsmis.methods.sam2_volume import Sam2Volume
from fsmis.propagation import propagate
from fsmis.protocol import Episode, OrganTask

CONF = Path(__file__).parents[1] / "conf"
TOLERANCE = 2e-4  # of logits


def waves(count: int, seed: int) -> np.ndarray:
    """Smooth images float32 [count, 90, 80] in [0, 1] of 8 bits."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:90, :80]
    images = np.zeros((count, 90, 80))
    for _ in range(5):
        fx, fy, phase = rng.uniform([0.05, 0.05, 0], [0.25, 0.25, 6], (count, 3)).T[..., None, None]
        images += np.sin(fx * x + fy * y + phase)
    images = (images - images.min()) / np.ptp(images)
    return ((images * 255).round() / 255).astype(np.float32)


def scan(name: str, image: np.ndarray) -> Scan:
    return Scan(name, image, None, (7.7, 1.25, 1.25), np.eye(4))


def public_logits(predictor, folder: Path, frames: list[np.ndarray], mask: np.ndarray):
    """Logits [L, H, W] of the frames after the first, which has the mask: the public predictor."""
    folder.mkdir()
    for number, image in enumerate(frames):
        pixels = (image * 255).round().astype(np.uint8)
        with (folder / f"{number:05d}.jpg").open("wb") as file:
            Image.fromarray(pixels).save(file, format="PNG")
    with contextlib.redirect_stderr(io.StringIO()):
        state = predictor.init_state(str(folder))
        predictor.add_new_mask(state, frame_idx=0, obj_id=0, mask=mask)
        _, *rest = predictor.propagate_in_video(state)
    return np.stack([logits[0, 0].numpy() for _, _, logits in rest])


@pytest.mark.filterwarnings("ignore")  # the package warns that its CUDA kernel is not compiled
@pytest.mark.parametrize(
    ("name", "depth"),
    [("sam2.1_tiny", 17), ("sam2_mini", 36)],  # 36: more frames than SAM2 has pointers
)
def test_volume_equals_the_public_predictor(name, depth, tmp_path):
    segmenter, public = build_twins(name, image_size=64, seed=1)
    support, query = waves(3, seed=0), waves(depth, seed=1)
    y, x = np.mgrid[:90, :80]
    masks = np.stack([(y - 30) ** 2 + (x - 30) ** 2 < 200, (y - 60) ** 2 + (x - 50) ** 2 < 400])
    whole, parts = np.zeros(depth, int), np.repeat([0, 1], [4, 3])
    tasks = {
        "liver": OrganTask("liver", np.array([1]), masks[:1], np.arange(depth), whole),
        "spleen": OrganTask("spleen", np.array([1, 2]), masks[::-1], np.arange(3, 10), parts),
    }
    videos = [  # organ, part, query slices in their order
        ("liver", 0, np.arange(depth)[depth // 2 :]),
        ("liver", 0, np.arange(depth)[depth // 2 :: -1]),
        ("spleen", 0, np.array([5, 6])),
        ("spleen", 0, np.array([5, 4, 3])),
        ("spleen", 1, np.array([8, 9])),
        ("spleen", 1, np.array([8, 7])),
    ]
    opening = [tasks[organ].support_slices[part] for organ, part, _ in videos]
    given = np.stack([tasks[organ].support_masks[part] for organ, part, _ in videos])
    frames = [slices for *_, slices in videos]

    encoded = segmenter.encode(query)
    memory = segmenter.memorise(segmenter.encode(support)[opening], given)
    logits = propagate(segmenter, encoded, frames, memory, query.shape[1:])
    found = Sam2Volume(segmenter).segment(
        Episode("phantom", 0, scan("1", support), scan("2", query), tasks)
    )
    for number, ((organ, _, slices), ours) in enumerate(zip(videos, logits, strict=True)):
        folder = tmp_path / str(number)
        video = [support[opening[number]], *query[slices]]
        theirs = public_logits(public, folder, video, given[number])
        assert np.abs(ours.numpy() - theirs).max() < TOLERANCE
        assert theirs.min() > -1000 and (theirs > 0).any() and (theirs < 0).any()
        in_two_videos = int(slices[1] < slices[0])  # the upward one answers for the middle slice
        rows = np.searchsorted(tasks[organ].query_slices, slices[in_two_videos:])
        assert (found[organ][rows] != (theirs[in_two_videos:] > 0)).mean() <= 1e-4
    # Not vacuous: what is remembered of earlier frames matters, by far more than the tolerance.
    alone = propagate(segmenter, encoded, [frames[0][5:]], memory[:1], query.shape[1:])
    assert np.abs((alone[0] - logits[0][5:]).numpy()).max() > 100 * TOLERANCE
