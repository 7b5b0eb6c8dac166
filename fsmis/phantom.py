"""Generated scans with organs, in the prepared format, for demos and tests.

    python -m fsmis.phantom --out data/phantom [--kind abdomen|cardiac] [--scans 4] [--seed 0]

The abdomen follows the prepared CHAOS scans (row 0 posterior, liver at small columns, z grows to
the head; labels 1 liver, 2 right kidney, 3 left kidney, 4 spleen), the heart the prepared CMR scans
in short axis (labels 1 LV myocardium, 2 LV blood pool, 3 RV). Patients differ in size, in place,
shape and brightness of every tissue, in smooth deformation, noise and bias field.

A cardiac phantom is read with ``dataset=cmr dataset.root=DIR dataset.fold_starts=2``.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from fsmis.cli import command_line
from fsmis.errors import UserError
from fsmis.nifti import write_mask, write_volume

SIZE = 256  # rows and columns
BRIGHTEST = 1000  # stored value of relative intensity 1


@dataclass(frozen=True)
class Tissue:
    """An ellipsoid of the mean patient.

    Attributes:
        label: prepared label id, 0 for what is no organ.
        intensity: relative, 0 (air) to 1.
        centre: mm (z, y, x) from the middle of the volume.
        radii: mm (z, y, x).
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
        n_slices: Z of the volume.
        spacing: mm (z, y, x).
        shift: standard deviation of the whole body's place, mm.
        jitter: standard deviation of each tissue's own place, mm.
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

ANATOMIES = {"abdomen": ABDOMEN, "cardiac": CARDIAC}


def generate(kind: str, seed: int, scan: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One patient, the same for the same arguments however many others are generated.

    Args:
        kind: ``abdomen`` or ``cardiac``.
        seed: of the whole data set.
        scan: number of the patient.

    Returns:
        image int16 [Z, H, W], 0 and more, label uint8 [Z, H, W], affine [4, 4] in (x, y, z) order.
    """
    anatomy = ANATOMIES[kind]
    magnitude, label = mr_patient(anatomy, SIZE, np.random.default_rng([seed, scan]))
    image = np.round(BRIGHTEST * magnitude).astype(np.int16)
    z, y, x = anatomy.spacing
    affine = np.diag([-x, y, z, 1.0])
    affine[:3, 3] = x * SIZE / 2, -y * SIZE / 2, 0
    return image, label, affine


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


def write_phantom(out: Path | str, kind: str = "abdomen", scans: int = 4, seed: int = 0) -> None:
    """Write ``image_<id>.nii.gz`` and ``label_<id>.nii.gz`` for the ids 1 to ``scans`` to ``out``.

    Raises:
        UserError: ``out`` cannot be written or holds other scans, or a number is too low.
    """
    if scans < 1:
        raise UserError(f"--scans={scans}: choose 1 or more (a benchmark needs 2)")
    if seed < 0:
        raise UserError(f"--seed={seed}: choose 0 or more")
    out = Path(out)
    files = [(out / f"image_{i}.nii.gz", out / f"label_{i}.nii.gz") for i in range(1, scans + 1)]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be made ({error.strerror}); choose another --out"
        ) from error
    foreign = set(out.glob("image_*.nii*")) - {image for image, _ in files}
    if foreign:
        raise UserError(f"{min(foreign)}: not of this phantom; choose an empty folder for --out")
    for scan, (image_path, label_path) in enumerate(files, start=1):
        image, label, affine = generate(kind, seed, scan)
        write_volume(image_path, image, affine)
        write_mask(label_path, label, affine)


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


def _smooth_field(
    shape: tuple[int, int, int], rng: np.random.Generator, waves: int = 6
) -> np.ndarray:
    """Random field [Z, H, W] of mean 0 and standard deviation 1: a sum of slow cosines."""
    z, y, x = (np.cos(np.pi * np.outer(np.arange(waves), (np.arange(n) + 0.5) / n)) for n in shape)
    amplitudes = rng.standard_normal((waves, waves, waves))
    field = np.einsum("abc,az,by,cx->zyx", amplitudes, z, y, x, optimize=True)
    return (field - field.mean()) / field.std()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one line on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m fsmis.phantom", description="Write generated scans in the prepared format."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--kind", choices=ANATOMIES, default="abdomen")
    parser.add_argument("--scans", type=int, default=4, help="number of patients")
    parser.add_argument("--seed", type=int, default=0, help="other seeds are other patients")
    options = parser.parse_args(arguments)
    with command_line():
        write_phantom(options.out, options.kind, options.scans, options.seed)
    print(f"{options.out}: {options.scans} {options.kind} scans")


if __name__ == "__main__":
    main()
