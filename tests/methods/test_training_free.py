"""The training-free baselines on phantoms, and on slices whose answer is known."""

import contextlib
import io
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image

from fsmis.data.dataset import Scan
from fsmis.data.protocol import Episode, OrganTask
from fsmis.errors import UserError
from fsmis.methods import Method
from fsmis.methods.frozen import ALPNetFrozen, PANetFrozen
from fsmis.methods.sam2_prompts import box_around_peak, box_of_masks, extreme_points, similarity
from fsmis.methods.sam2_video import propagate
from fsmis.segmenters.features import Features
from fsmis.tools.bench.ways import build_twins, make_responsive

CONF = Path(__file__).parents[2] / "conf"
SAM2_METHODS = ["sam2_single", "sam2_volume", "sam2_points", "sam2_box"]
METHODS = [*SAM2_METHODS, "panet_frozen", "alpnet_frozen"]
TOLERANCE = 2e-4  # of logits


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "config", overrides=["dataset=phantom", "device=cpu", "cache.dir=null", *overrides]
        )


def build(name: str, *overrides: str) -> Method:
    """A method as configured, small and with lively random weights."""
    small = ["segmenter.checkpoint=random", "segmenter.image_size=64"]
    method = instantiate(composed(f"method={name}", *small, *overrides).method)
    make_responsive(method.segmenter.model, seed=3)
    return method


@pytest.fixture(scope="module", params=[1, 3])
def episode(request, phantom_root) -> Episode:
    """A query scan of the phantom with one or three labelled slices for each organ."""
    config = composed(f"dataset.root={phantom_root}", f"protocol.n_parts={request.param}")
    dataset, protocol = instantiate(config.dataset), instantiate(config.protocol)
    split = protocol.splits(dataset)[0]
    support, query = dataset.load(split.support_id), dataset.load(split.query_ids[0])
    return protocol.episode(dataset, split, support, query)


@pytest.mark.parametrize("name", METHODS)
def test_every_baseline_answers_a_phantom(name, episode):
    method = build(name)
    masks = method.segment(episode)
    assert list(masks) == list(episode.organs) == ["liver", "RK", "LK", "spleen"]
    for organ, task in episode.organs.items():
        assert masks[organ].shape == (len(task.query_slices), *episode.query.image.shape[1:])
        assert masks[organ].dtype == bool
        shown = method.matches[organ]
        for match, part in zip(shown, task.part, strict=True):
            slice_ = episode.support.image[task.support_slices[part]]
            np.testing.assert_array_equal(match.image, slice_)
            np.testing.assert_array_equal(match.mask, task.support_masks[part])
    assert any(mask.any() for mask in masks.values())
    tasks = episode.organs.values()
    assert method.segmenter.images_encoded == len(
        set(np.concatenate([task.query_slices for task in tasks]))
    ) + len(set(np.concatenate([task.support_slices for task in tasks])))

    # Nothing is left over, organs do not influence each other, and no query label is read.
    labelled = replace(episode.query, label=np.ones(episode.query.image.shape, np.uint8))
    backwards = dict(reversed(episode.organs.items()))
    again = method.segment(replace(episode, organs=backwards, query=labelled))
    for organ, mask in masks.items():
        assert (again[organ] != mask).mean() < 1e-4  # rounding, batches being others


def test_single_is_the_main_method_without_its_stages(episode):
    single = build("sam2_single").segment(episode)
    bare = ["support_set.count=1", "support_set.kind=none", "matcher=identity"]
    bare += ["method.memories=1", "method.volume_pass.reach=0", "method.largest_component=false"]
    bare += ["method.zoom.passes=0", "method.non_overlap=false", "method.borders.width=0"]
    for organ, mask in build("augment_match_prompt", *bare).segment(episode).items():
        assert (single[organ] != mask).mean() < 1e-4


class Greys:
    """An encoder whose features are the grey value and its complement, on an eighth of the grid."""

    def encode(self, images: np.ndarray) -> Features:
        grey = torch.nn.functional.avg_pool2d(torch.from_numpy(images)[:, None], 8)
        return Features([torch.cat([grey, 1 - grey], 1)], torch.zeros(1))


@pytest.fixture
def squares() -> tuple[Episode, np.ndarray]:
    """Bright squares on dark ground, elsewhere in each query slice, and their true masks."""
    truth = np.zeros((4, 64, 64), bool)
    for z, (row, column) in enumerate([(8, 8), (32, 16), (16, 40), (40, 40)]):
        truth[z, row : row + 16, column : column + 16] = True
    image = np.where(truth, 0.9, 0.1).astype(np.float32)
    task = OrganTask("square", np.array([0]), truth[:1], np.arange(1, 4), np.zeros(3, int))
    return Episode("squares", 0, scan("1", image), scan("2", image), {"square": task}), truth[1:]


@pytest.mark.parametrize(
    "method", [PANetFrozen(Greys(), 0), ALPNetFrozen(Greys(), 0, window=2, threshold=0.95)]
)
def test_prototypes_find_what_is_separable(method, squares):
    episode, truth = squares
    found = method.segment(episode)["square"]
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9


def test_the_local_prototypes_are_used(squares):
    """A background of two kinds, of which the mean lies nearer to the organ."""
    episode, _ = squares
    image = episode.support.image.copy()
    image[:, :, 56:] = 1.0
    image[:, 56:] = 1.0
    two_kinds = replace(episode, support=scan("1", image), query=scan("2", image))
    alpnet = ALPNetFrozen(Greys(), 0, window=1, threshold=0.95).segment(two_kinds)["square"]
    panet = PANetFrozen(Greys(), 0).segment(two_kinds)["square"]
    assert panet[:, 60:].mean() > 0.9 > alpnet[:, 60:].mean()


def test_prompts_lie_where_the_slice_is_like_the_organ(squares):
    episode, truth = squares
    features = Greys().encode(episode.query.image).levels[0]
    given = torch.zeros(3, 8, 8)
    given[:, 1:3, 1:3] = 1
    maps = similarity(features[:1].expand(3, -1, -1, -1), given, features[1:], side=128)
    assert maps.shape == (3, 128, 128) and maps.max() <= 1 + 1e-6
    coordinates, labels = extreme_points(maps)
    assert labels.tolist() == [[1, 0]] * 3
    for mask, (organ, background) in zip(truth, (coordinates / 2).int().tolist(), strict=True):
        assert mask[organ[1], organ[0]] and not mask[background[1], background[0]]
    boxes, labels = box_around_peak(maps, 0.5)
    assert labels.tolist() == [[2, 3]] * 3
    assert (boxes / 2 - box_of_masks(torch.from_numpy(truth))[0]).abs().max() <= 3


def test_the_box_holds_the_region_of_the_peak_alone():
    maps = torch.zeros(1, 10, 12)
    maps[0, 2:4, 3:8] = 0.8
    maps[0, 3, 5] = 1
    maps[0, 7:9, 0:11] = 0.9
    assert box_around_peak(maps, 0.5)[0].tolist() == [[[3, 2], [8, 4]]]
    assert box_around_peak(maps, 0.95)[0].tolist() == [[[5, 3], [6, 4]]]


def test_points_and_boxes_equal_the_public_image_predictor():
    segmenter, _ = build_twins("sam2_mini", image_size=64, seed=1)
    # only now: whoever imports sam2 first has Hydra initialised
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    image = np.repeat(waves(1, seed=4)[:, :64, :64, None], 3, axis=3)[0]
    pixels = (image * 255).round().astype(np.uint8)
    public = SAM2ImagePredictor(segmenter.model)
    # its sizes are those of an image of 1024 pixels
    public._bb_feat_sizes = [(16, 16), (8, 8), (4, 4)]
    public.set_image(pixels)
    features = segmenter.encode(image[None, :, :, 0])
    points, point_labels = np.array([[20.0, 30.0], [5.0, 50.0]]), np.array([1, 0])
    corners = np.array([10.0, 12.0, 40.0, 50.0])
    asked = [  # coordinates, labels, the same for the public predictor
        (points, point_labels, {"point_coords": points, "point_labels": point_labels}),
        (corners.reshape(2, 2), np.array([2, 3]), {"box": corners}),
    ]
    answers = []
    for coordinates, labels, prompt in asked:
        logits, iou, _ = segmenter.decode_points(
            features,
            torch.tensor(coordinates[None], dtype=torch.float32),
            torch.tensor(labels[None], dtype=torch.int32),
        )
        _, their_iou, theirs = public.predict(**prompt, multimask_output=False)
        assert np.abs(logits[0].numpy() - theirs).max() < TOLERANCE
        assert np.abs(iou[0].numpy() - their_iou).max() < TOLERANCE
        refined = segmenter.decode_points(
            features,
            torch.tensor(coordinates[None], dtype=torch.float32),
            torch.tensor(labels[None], dtype=torch.int32),
            logits,
        )[0]
        _, _, theirs = public.predict(**prompt, mask_input=theirs, multimask_output=False)
        assert np.abs(refined[0].numpy() - theirs).max() < TOLERANCE
        answers += [logits, refined]
    for one, other in itertools.pairwise(answers):
        assert (one - other).abs().max() > 100 * TOLERANCE


def test_refining_asks_with_the_first_answer(episode):
    once, twice = (build("sam2_points", f"method.refine={refine}") for refine in (False, True))
    answers = zip(once.segment(episode).values(), twice.segment(episode).values(), strict=True)
    assert any((one != two).any() for one, two in answers)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("alpnet_frozen", "method.window=0", r"method\.window=0"),
        ("alpnet_frozen", "method.window=1.5", r"method\.window=1\.5"),
        ("alpnet_frozen", "method.threshold=1", r"method\.threshold=1"),
        ("sam2_box", "method.threshold=1.2", r"method\.threshold=1\.2"),
    ],
)
def test_bad_settings_are_named(name, override, message):
    with pytest.raises(InstantiationException, match=message) as error:
        build(name, override)
    assert isinstance(error.value.__cause__, UserError)


def test_a_level_that_is_not_there_is_named(episode):
    with pytest.raises(UserError, match=r"method\.level=3: the segmenter has 3 levels"):
        build("panet_frozen", "method.level=3").segment(episode)


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
    [("sam2.1_tiny", 7), ("sam2_mini", 36)],  # 36: more frames than SAM2 has pointers
)
def test_volume_equals_the_public_predictor(name, depth, tmp_path):
    segmenter, public = build_twins(name, image_size=64, seed=1)
    support, query = waves(3, seed=0), waves(depth, seed=1)
    y, x = np.mgrid[:90, :80]
    masks = np.stack([(y - 30) ** 2 + (x - 30) ** 2 < 200, (y - 60) ** 2 + (x - 50) ** 2 < 400])
    whole, parts = np.zeros(depth, int), np.repeat([0, 1], [4, 3])
    tasks = {
        "liver": OrganTask("liver", np.array([1]), masks[:1], np.arange(depth), whole),
        "spleen": OrganTask("spleen", np.array([1, 2]), masks[::-1], np.arange(7), parts),
    }
    videos = [  # organ, part, query slices in their order
        ("liver", 0, np.arange(depth)[depth // 2 :]),
        ("liver", 0, np.arange(depth)[depth // 2 :: -1]),
        ("spleen", 0, np.array([2, 3])),
        ("spleen", 0, np.array([2, 1, 0])),
        ("spleen", 1, np.array([5, 6])),
        ("spleen", 1, np.array([5, 4])),
    ]
    opening = [tasks[organ].support_slices[part] for organ, part, _ in videos]
    given = np.stack([tasks[organ].support_masks[part] for organ, part, _ in videos])
    frames = [slices for *_, slices in videos]

    encoded = segmenter.encode(query)
    memory = segmenter.memorise(segmenter.encode(support)[opening], given)
    logits = propagate(segmenter, encoded, frames, memory, query.shape[1:])
    method = instantiate(composed("method=sam2_volume").method, segmenter=segmenter)
    found = method.segment(Episode("phantom", 0, scan("1", support), scan("2", query), tasks))
    for number, ((organ, _, slices), ours) in enumerate(zip(videos, logits, strict=True)):
        folder = tmp_path / str(number)
        video = [support[opening[number]], *query[slices]]
        theirs = public_logits(public, folder, video, given[number])
        assert np.abs(ours.gated - theirs).max() < TOLERANCE
        assert theirs.min() > -1000 and (theirs > 0).any() and (theirs < 0).any()
        in_two_videos = int(slices[1] < slices[0])  # the upward one answers for the middle slice
        rows = np.searchsorted(tasks[organ].query_slices, slices[in_two_videos:])
        assert (found[organ][rows] != (theirs[in_two_videos:] > 0)).mean() <= 1e-4
    # Not vacuous: what is remembered of earlier frames matters, by far more than the tolerance.
    alone = propagate(segmenter, encoded, [frames[0][2:]], memory[:1], query.shape[1:])
    assert np.abs(alone[0].gated - logits[0].gated[2:]).max() > 100 * TOLERANCE
