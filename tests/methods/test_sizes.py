"""Every method on support and query of any two sizes, and trainings on scans of several."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fsmis.cli import CONF_DIR
from fsmis.data.dataset import Scan
from fsmis.data.nifti import write_mask, write_volume
from fsmis.data.protocol import Episode, OrganTask, Split
from fsmis.methods import Method, TrainingScans
from fsmis.pipeline.matching import Matcher, match
from fsmis.runs.evaluation import Evaluation
from fsmis.runs.records import Cell
from fsmis.segmenters.sam2 import Sam2
from fsmis.tools.bench.ways import make_responsive

ELSEWHERE = {"predictions", "universeg"}  # want files, or a package (see the tests of each)
METHODS = sorted({path.stem for path in (CONF_DIR / "method").glob("*.yaml")} - ELSEWHERE)
MATCHERS = sorted(path.stem for path in (CONF_DIR / "matcher").glob("*.yaml"))
TRAINED = ("panet", "alpnet", "adnet", "qnet")
PROMPTED = ("augment_match_prompt", "sam2_single", "sam2_volume", "fate_sam", "fs_medsam2")
SMALL = (
    "device=cpu",
    "cache.dir=null",
    "dataset=phantom",
    "segmenter.checkpoint=random",
    "segmenter.image_size=32",
    "support_set.count=2",
)
TINY_TRAINING = (
    "method.training.image_size=32",
    "method.training.encoder.channels=8",
    "method.training.schedule.steps=1",
    "method.training.schedule.pairs=2",
    "method.training.schedule.classes=2",
    "method.training.supervoxels.min_size=4",
)
TEST_TIME = (
    "method.flip=true",
    "method.volume_pass.confidence=0",
    "zoom@method.zoom=default",
    "method.zoom.size=32",
    "scale@method.scale=search",
)
SIZES = [(24, 31), (40, 40), (17, 52), (31, 20), (48, 36), (22, 22)]
FEW = settings(max_examples=2, deadline=None, phases=[Phase.generate])
sizes = st.tuples(st.integers(1, 3), st.integers(2, 70), st.integers(2, 70))
pairs = st.tuples(sizes, sizes).filter(lambda pair: pair[0][1:] != pair[1][1:])


def scan_of(name: str, shape: tuple[int, int, int]) -> tuple[Scan, np.ndarray]:
    """A bright block in a noisy body, and its mask."""
    rng = np.random.default_rng(shape)
    mask = np.zeros(shape, bool)
    rows, columns = shape[1], shape[2]
    mask[:, rows // 4 : rows // 4 + rows // 2, columns // 3 : columns // 3 + columns // 2] = True
    image = (0.4 + 0.4 * mask + 0.1 * rng.random(shape)).astype(np.float32)
    image[:, 0] = 0
    return Scan(name, image, None, (5.0, 1.5, 1.25), np.eye(4)), mask


def episode_of(support: tuple[int, int, int], query: tuple[int, int, int]) -> Episode:
    """One organ in all slices of both scans, labelled in up to two support slices."""
    (support_scan, mask), (query_scan, _) = scan_of("1", support), scan_of("2", query)
    labelled = np.unique([0, support[0] - 1])
    part = np.arange(query[0]) % len(labelled)
    task = OrganTask("block", labelled, mask[labelled], np.arange(query[0]), part)
    return Episode("phantom", 0, support_scan, query_scan, {"block": task})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Six scans, each of another size."""
    root = tmp_path_factory.mktemp("sizes")
    for number, size in enumerate(SIZES, 1):
        scan, mask = scan_of(str(number), (2 + number % 3, *size))
        affine = np.diag([-1.25, 1.5, 5.0, 1.0])
        write_volume(root / f"image_{number}.nii.gz", (1000 * scan.image).astype(np.int16), affine)
        write_mask(root / f"label_{number}.nii.gz", mask, affine)
    return root


def composed(root: Path, *overrides: str):
    where = [f"dataset.root={root}", f"results_dir={root}/runs", "dataset.fold_starts=3"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", [*SMALL, *where, *overrides])


@cache
def segmenter_of(root: Path) -> Sam2:
    segmenter = instantiate(composed(root).segmenter)
    make_responsive(segmenter.model, seed=3)
    return segmenter


@cache
def matcher_of(root: Path, name: str) -> Matcher:
    random = ["matcher.weights=random", "matcher.net=squeeze"] if name == "lpips" else []
    return instantiate(composed(root, f"matcher={name}", *random).matcher)


@cache
def method_of(root: Path, name: str, *overrides: str) -> Method:
    """A method, small; a trained one after a step on the scans of six sizes."""
    if name in TRAINED:
        overrides += TINY_TRAINING
    config = composed(root, f"method={name}", *overrides)
    given = {"segmenter": segmenter_of(root)} if "segmenter" in config.method else {}
    method = instantiate(config.method, **given)
    if name in TRAINED:
        split = Split(0, "1", ["2"])
        log = method.fit(TrainingScans(instantiate(config.dataset), split, method.setting))
        assert log is not None and np.isfinite(log.to_numpy()).all()
    return method


def require_masks_of_the_query(method: Method, episode: Episode) -> None:
    for organ, mask in method.segment(episode).items():
        assert mask.dtype == np.bool_
        slices = episode.organs[organ].query_slices
        assert mask.shape == (len(slices), *episode.query.image.shape[1:])
    for organ, matches in method.matches.items():
        for shown in matches:
            assert shown.image.shape == shown.mask.shape == episode.support.image.shape[1:], organ


@pytest.mark.parametrize("name", METHODS)
@FEW
@given(pair=pairs)
def test_any_two_sizes(root, name, pair):
    require_masks_of_the_query(method_of(root, name), episode_of(*pair))


@pytest.mark.parametrize("name", PROMPTED)
@FEW
@given(pair=pairs)
def test_any_two_sizes_with_all_that_refines(root, name, pair):
    switches = TEST_TIME if name == "augment_match_prompt" else TEST_TIME[2:]
    method = method_of(root, name, *switches)
    require_masks_of_the_query(method, episode_of(*pair))


@pytest.mark.parametrize("name", [name for name in MATCHERS if name != "encoder_features"])
@FEW
@given(pair=pairs, side=st.sampled_from([None, 40]))
def test_any_two_sizes_with_every_matcher(root, name, pair, side):
    matcher = matcher_of(root, name)
    if side is not None and hasattr(matcher, "batch_size"):
        matcher.image_size = side
    support, query = pair
    if name in ("lpips", "ssim"):  # which want so many pixels a side
        support, query = ((z, 17 + h, 17 + w) for z, h, w in pair)
    copies, queries = scan_of("1", support)[0].image, scan_of("2", query)[0].image
    nearest = match(matcher, queries, copies)
    assert nearest.shape == (len(queries), 1) and (nearest < len(copies)).all()


@pytest.mark.parametrize("name", ["augment_match_prompt", "registration", "adnet"])
def test_a_run_over_scans_of_several_sizes(root, name):
    overrides = TINY_TRAINING if name in TRAINED else ()
    config = composed(root, f"method={name}", "dataset.organs={liver:1}", *overrides)
    run = Evaluation(config.method, instantiate(config.dataset), instantiate(config.protocol))
    run.fit(0)
    assert run.segment(Cell(0, "3", "2")).masks["liver"].shape[1:] == SIZES[1]
