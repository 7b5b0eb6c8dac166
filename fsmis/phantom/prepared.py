"""Generated scans in the prepared format: ``image_<id>.nii.gz`` and ``label_<id>.nii.gz``."""

from pathlib import Path

import numpy as np

from fsmis.data.nifti import write_mask, write_volume
from fsmis.errors import UserError
from fsmis.phantom.anatomy import ABDOMEN, CARDIAC
from fsmis.phantom.patient import mr_patient

SIZE = 256  # rows and columns
BRIGHTEST = 1000  # stored value of relative intensity 1
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
    return image, label, anatomy.affine(SIZE)


def write_phantom(out: Path | str, kind: str = "abdomen", scans: int = 4, seed: int = 0) -> None:
    """Write ``image_<id>.nii.gz`` and ``label_<id>.nii.gz`` for the ids 1 to ``scans`` to ``out``.

    A heart is read with ``dataset=cmr dataset.root=DIR dataset.fold_starts=2``.

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
