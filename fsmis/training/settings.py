"""Settings of the synthetic data."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SyntheticSettings:
    """Ranges of the generator; see ``conf/training/sam2_mini.yaml`` for what each does."""

    tissues: int
    organs: int
    targets: int
    rotation: float
    scaling: float
    shift: float
    displacement: float
    height_change: float
    beyond: float
    elsewhere: float
    cropped: float
    crop_factor: Sequence[float]
    misplaced: float
    field_of_view: float
    shape_change: float
    thinnest: float
    ct: float
    contrast_change: float
    texture: float
    vessels: float
    noise: float
    bias_field: float
    gamma: float
    absent: float
    smallest: float
    largest: float
