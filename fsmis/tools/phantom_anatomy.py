"""Mean patients as ellipsoids: an abdomen in MR and in CT, and a heart in short axis."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter


@dataclass(frozen=True)
class Tissue:
    """An ellipsoid of the mean patient, in mm (z, y, x) from the middle of the volume.

    ``label`` is 0 for what is no organ; ``intensity`` is from 0 (air) to 1, in CT the position in
    the abdominal window.
    """

    label: int
    intensity: float
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]


@dataclass(frozen=True)
class Anatomy:
    """The mean patient and how patients differ.

    Attributes:
        tissues: each lies over the ones before it; the first is the body, the second what its fat
            rim encloses, and all others lie within the second.
        spacing: mm (z, y, x).
        shift, jitter: standard deviation of the position of the body and of each tissue, mm.
        stretch: standard deviation of each tissue's radii, relative.
        bend: standard deviation of the smooth deformation, mm.
    """

    tissues: tuple[Tissue, ...]
    n_slices: int
    spacing: tuple[float, float, float]
    shift: float
    jitter: float
    stretch: float
    bend: float

    def in_slices(self, size: int, field_mm: float, z_mm: float) -> "Anatomy":
        """The same trunk in slices of ``field_mm`` and ``size`` pixels, ``z_mm`` apart."""
        length = self.n_slices * self.spacing[0]
        pixel = field_mm / size
        return replace(self, n_slices=round(length / z_mm), spacing=(z_mm, pixel, pixel))

    def affine(self, size: int) -> np.ndarray:
        """Affine [4, 4] (x, y, z) of square slices: columns to the left, rows to the front."""
        z, y, x = self.spacing
        affine = np.diag([-x, y, z, 1.0])
        affine[:3, 3] = x * size / 2, -y * size / 2, 0
        return affine


ABDOMEN = Anatomy(
    tissues=(
        Tissue(0, 0.10, (0, 0, 0), (500, 98, 138)),  # body with its fat, suppressed in T2-SPIR
        Tissue(0, 0.20, (0, 0, 0), (460, 86, 126)),  # muscle and mesentery
        Tissue(0, 0.42, (20, 28, 45), (60, 36, 48)),  # stomach
        Tissue(0, 0.85, (-55, 38, -15), (35, 18, 28)),  # bowel, fluid
        Tissue(0, 0.35, (-60, 20, 50), (40, 30, 35)),  # bowel
        Tissue(0, 0.32, (0, -50, 0), (500, 19, 22)),  # vertebrae
        Tissue(0, 0.95, (0, -66, 0), (500, 6, 8)),  # spinal canal
        Tissue(0, 0.06, (0, -23, 8), (500, 9, 9)),  # aorta
        Tissue(1, 0.38, (28, 5, -66), (66, 66, 68)),  # liver
        Tissue(4, 0.64, (32, -25, 94), (44, 36, 21)),  # spleen
        Tissue(2, 0.74, (-18, -40, -58), (48, 20, 24)),  # right kidney
        Tissue(3, 0.74, (-8, -40, 58), (48, 20, 24)),  # left kidney
    ),
    n_slices=24,
    spacing=(7.7, 1.25, 1.25),
    shift=8,
    jitter=6,
    stretch=0.10,
    bend=4.5,
)

CARDIAC = Anatomy(
    tissues=(
        Tissue(0, 0.75, (0, 0, 0), (500, 105, 145)),  # chest wall with its fat, bright in bSSFP
        Tissue(0, 0.10, (0, 0, 0), (460, 85, 125)),  # lungs
        Tissue(0, 0.45, (0, -65, -10), (500, 28, 30)),  # vertebrae
        Tissue(0, 0.85, (0, -35, 20), (500, 12, 12)),  # aorta
        Tissue(0, 0.40, (-30, 45, -40), (30, 60, 60)),  # liver, below the heart
        Tissue(0, 0.60, (0, 12, 8), (60, 45, 62)),  # fat around the heart
        Tissue(3, 0.88, (4, 18, -14), (46, 26, 44)),  # RV: the crescent that the LV leaves
        Tissue(1, 0.32, (0, 12, 26), (54, 33, 33)),  # LV myocardium
        Tissue(2, 0.92, (4, 12, 26), (46, 22, 22)),  # LV blood pool
    ),
    n_slices=12,
    spacing=(7.99, 1.25, 1.25),
    shift=8,
    jitter=1.5,
    stretch=0.06,
    bend=3,
)


def _rib(angle: float) -> Tissue:
    return Tissue(0, 1.1, (0, 78 * np.sin(angle), 118 * np.cos(angle)), (500, 5, 8))


CT = replace(
    ABDOMEN,
    tissues=(
        Tissue(0, 0.06, (0, 0, 0), (500, 98, 138)),  # fat
        Tissue(0, 0.40, (0, 0, 0), (460, 86, 126)),  # muscle and mesentery
        Tissue(7, 0.42, (20, 28, 45), (60, 36, 48)),  # stomach
        Tissue(0, -2.10, (20, 50, 45), (30, 12, 24)),  # air in it
        Tissue(0, 0.32, (-55, 38, -15), (35, 18, 28)),  # bowel
        Tissue(0, 0.95, (0, -50, 0), (500, 19, 22)),  # vertebrae
        Tissue(0, 0.40, (0, -66, 0), (500, 6, 8)),  # spinal canal
        Tissue(8, 0.75, (0, -23, 8), (500, 9, 9)),  # aorta
        Tissue(9, 0.62, (0, -20, -16), (500, 9, 10)),  # inferior vena cava
        *(_rib(angle) for angle in np.linspace(-0.9, np.pi + 0.9, 9)),
        Tissue(6, 0.58, (28, 5, -66), (66, 66, 68)),  # liver
        Tissue(4, 0.34, (0, 35, -40), (18, 14, 14)),  # gallbladder
        Tissue(1, 0.63, (32, -25, 94), (44, 36, 21)),  # spleen
        Tissue(2, 0.76, (-18, -40, -58), (48, 20, 24)),  # right kidney
        Tissue(3, 0.76, (-8, -40, 58), (48, 20, 24)),  # left kidney
    ),
)


def mr_patient(
    anatomy: Anatomy, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A patient in MR: image float32, about 0 (air) to 1, and label uint8, both [Z, size, size].

    Row 0 is posterior, column 0 to the patient's right.
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
    """Position in the mean patient of each voxel, mm (z, y, x): float32 [Z, H, W] each."""
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
    z, y, x = (np.cos(np.pi * np.outer(np.arange(waves), (np.arange(n) + 0.5) / n)) for n in shape)
    amplitudes = rng.standard_normal((waves, waves, waves))
    field = np.einsum("abc,az,by,cx->zyx", amplitudes, z, y, x, optimize=True)
    return (field - field.mean()) / field.std()
