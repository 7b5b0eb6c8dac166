"""Settings of the synthetic data."""

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
    shape_change: float
    contrast_change: float
    texture: float
    noise: float
    bias_field: float
    gamma: float
    vanished: float
    smallest: float
    largest: float
