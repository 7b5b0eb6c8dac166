"""One patient of a mean patient: its tissues bent, moved and stretched, with noise."""

import numpy as np
from scipy.ndimage import gaussian_filter

from fsmis.phantom.anatomy import Anatomy


def mr_patient(
    anatomy: Anatomy, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A patient in magnitude MR: image float32 and label uint8, both [Z, size, size].

    Returns:
        image of about 0 (air) to 1, and label; row 0 is posterior, column 0 to the patient's right.
    """
    shape = (anatomy.n_slices, size, size)
    intensity, label = paint(anatomy, shape, rng)
    texture = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), (0, 3, 3))
    intensity = intensity * (1 + 0.6 * texture) * np.exp(0.2 * _smooth_field(shape, rng))
    intensity = gaussian_filter(intensity, (0, 0.8, 0.8))
    noise = rng.uniform(0.015, 0.035) * rng.standard_normal((2, *shape), dtype=np.float32)
    return np.hypot(intensity + noise[0], noise[1]), label  # Rician, as in magnitude MR images


def paint(
    anatomy: Anatomy, shape: tuple[int, int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Intensity float32 and label uint8, both of ``shape`` [Z, H, W], of one patient's tissues."""
    coordinates = _patient_coordinates(anatomy, shape, rng)
    intensity = np.zeros(coordinates[0].shape, np.float32)
    label = np.zeros(coordinates[0].shape, np.uint8)
    within = np.ones(coordinates[0].shape, bool)
    for layer, tissue in enumerate(anatomy.tissues):
        enclosing = layer < 2
        centre = tissue.centre + rng.normal(0, 0 if enclosing else anatomy.jitter, 3)
        radii = tissue.radii * rng.normal(1, anatomy.stretch, 3)
        squared = sum(
            ((c - m) / r) ** 2 for c, m, r in zip(coordinates, centre, radii, strict=True)
        )
        inside = (squared <= 1) & within
        intensity[inside] = tissue.intensity * rng.normal(1, 0.12)
        label[inside] = tissue.label
        if enclosing:
            within = inside
    return intensity, label


def _patient_coordinates(
    anatomy: Anatomy, shape: tuple[int, int, int], rng: np.random.Generator
) -> list[np.ndarray]:
    """Where each voxel lies in the mean patient, mm, for (z, y, x): float32 [Z, H, W] each."""
    size = rng.normal(1, 0.05)
    return [
        (
            (axis - n / 2) * spacing / size
            + rng.normal(0, anatomy.shift)
            + anatomy.bend * _smooth_field(shape, rng)
        ).astype(np.float32)
        for axis, n, spacing in zip(
            np.ogrid[tuple(map(slice, shape))], shape, anatomy.spacing, strict=True
        )
    ]


def _smooth_field(
    shape: tuple[int, int, int], rng: np.random.Generator, waves: int = 6
) -> np.ndarray:
    """Random field [Z, H, W] of mean 0 and standard deviation 1: a sum of slow cosines."""
    z, y, x = (np.cos(np.pi * np.outer(np.arange(waves), (np.arange(n) + 0.5) / n)) for n in shape)
    amplitudes = rng.standard_normal((waves, waves, waves))
    field = np.einsum("abc,az,by,cx->zyx", amplitudes, z, y, x, optimize=True)
    return (field - field.mean()) / field.std()
