"""Registration: a known warp is undone, the same every time, once for every pair of slices."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy.ndimage import gaussian_filter, map_coordinates

from fsmis.data.dataset import Scan, scale_intensities
from fsmis.data.protocol import Episode, OrganTask
from fsmis.methods import registration
from fsmis.methods.registration import CopyMask, Registration
from fsmis.tools.phantom import generate

CONF = Path(__file__).parents[2] / "conf" / "method"
LIVER, RIGHT_KIDNEY = 1, 2
SLICE = 10
SPACING = (7.7, 1.25, 1.25)


@pytest.fixture
def method() -> Registration:
    with initialize_config_dir(str(CONF), version_base=None):
        return instantiate(compose("registration"))


@pytest.fixture(scope="module")
def phantom() -> tuple[np.ndarray, np.ndarray]:
    """Image in [0, 1] and label, [H, W], of one phantom slice with liver and right kidney."""
    image, label, _ = generate("abdomen", seed=0, scan=1)
    return scale_intensities(image, (0.5, 99.5))[SLICE], label[SLICE]


def warp(pixels: np.ndarray, order: int) -> np.ndarray:
    """Rotated by 6 degrees, enlarged by 8 %, shifted by 14 and 9 pixels, and smoothly bent."""
    rng = np.random.default_rng(0)
    bend = np.stack([gaussian_filter(rng.standard_normal(pixels.shape), 25) for _ in range(2)])
    bend *= 3 / bend.std()
    angle, centre = np.deg2rad(6), np.array(pixels.shape).reshape(2, 1, 1) / 2
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / 1.08
    grid = np.indices(pixels.shape) - centre
    source = np.einsum("ij,jhw->ihw", matrix, grid) + centre - [[[14]], [[9]]] + bend
    return map_coordinates(pixels.astype(np.float32), source, order=order)


def episode(
    support: np.ndarray,
    query: np.ndarray,
    masks: dict[str, np.ndarray],
    query_spacing: tuple[float, float, float] = SPACING,
) -> Episode:
    """Every mask on the one support slice, all query slices."""

    def scan(name: str, slices: np.ndarray, spacing: tuple[float, float, float]) -> Scan:
        return Scan(name, slices, None, spacing, np.eye(4))

    everything = np.arange(len(query))
    tasks = {
        organ: OrganTask(organ, np.array([0]), mask[None], everything, 0 * everything)
        for organ, mask in masks.items()
    }
    support_scan = scan("1", support[None], SPACING)
    return Episode("phantom", 0, support_scan, scan("2", query, query_spacing), tasks)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_a_known_warp_is_recovered(method, phantom):
    image, label = phantom
    truth = warp(label, order=0)
    masks = {"liver": label == LIVER, "RK": label == RIGHT_KIDNEY}
    segmented = method.segment(episode(image, warp(image, order=1)[None], masks))
    for organ, value in {"liver": LIVER, "RK": RIGHT_KIDNEY}.items():
        recovered = dice(segmented[organ][0], truth == value)
        assert recovered > 0.9, organ
        assert recovered > dice(masks[organ], truth == value) + 0.1, organ
    assert method.outcomes == {"demons": 1}


def test_other_pixel_size_of_the_query_is_respected(method, phantom):
    image, label = phantom
    masks = {"liver": label == LIVER}
    halved = (7.7, 2.5, 2.5)
    segmented = method.segment(episode(image, image[None, ::2, ::2], masks, halved))
    assert segmented["liver"].shape == (1, 128, 128)
    assert dice(segmented["liver"][0], label[::2, ::2] == LIVER) > 0.95


def test_same_result_whatever_the_number_of_threads(method, phantom):
    image, label = phantom
    task = episode(image, warp(image, order=1)[None], {"liver": label == LIVER})
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    results = []
    try:
        for threads in (1, 4, 4):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            results.append(method.segment(task)["liver"])
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[1], results[2])


def test_organs_of_a_support_slice_share_its_registrations(method, phantom):
    image, label = phantom
    masks = {"liver": label == LIVER, "RK": label == RIGHT_KIDNEY}
    together = method.segment(episode(image, np.stack([image, image[::-1]]), masks))
    assert method.outcomes.total() == 2
    alone = method.segment(episode(image, np.stack([image, image[::-1]]), {"RK": masks["RK"]}))
    assert np.array_equal(together["RK"], alone["RK"])


def test_failed_demons_leave_the_affine(method, phantom, monkeypatch):
    def fail(*_):
        raise RuntimeError("ITK ERROR: demons")

    monkeypatch.setattr(registration, "_refine_by_demons", fail)
    image, label = phantom
    truth = warp(label, order=0) == LIVER
    segmented = method.segment(
        episode(image, warp(image, order=1)[None], {"liver": label == LIVER})
    )
    assert method.outcomes == {"affine": 1}
    assert dice(segmented["liver"][0], truth) > dice(label == LIVER, truth)


def test_an_empty_query_slice_keeps_the_mask_where_it_is(method, phantom):
    image, label = phantom
    task = episode(image, np.zeros_like(image)[None], {"liver": label == LIVER})
    assert np.array_equal(method.segment(task)["liver"][0], label == LIVER)
    assert method.outcomes == {"none": 1}


def test_a_thin_mask_stays_where_slices_are_of_another_size():
    mask = np.zeros((2, 256, 256), bool)
    mask[0, 100, 100:110] = mask[1, 7, 7] = True
    task = OrganTask("liver", np.arange(2), mask, np.arange(2), np.arange(2))
    large, small = (
        Scan(name, np.zeros((2, side, side), np.float32), None, SPACING, np.eye(4))
        for name, side in (("1", 256), ("2", 128))
    )
    found = CopyMask().segment(Episode("phantom", 0, large, small, {"liver": task}))["liver"]
    assert found.shape == (2, 128, 128) and found.any(axis=(1, 2)).all()
    assert np.argwhere(found[0]).mean(0) == pytest.approx([50, 52], abs=1)
