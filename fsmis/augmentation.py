"""What makes one augmented copy, as plain numbers, and its deterministic application."""

from dataclasses import dataclass

from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import (
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    affine,
)


@dataclass(frozen=True)
class Geometry:
    """An affine transform about the image centre; the default is the identity.

    Attributes:
        rotation_deg: clockwise as displayed, degrees.
        translation: (right, down), fractions of width and height.
        scale: factor of lengths.
        shear_deg: along (x, y), degrees; keeps areas.
    """

    rotation_deg: float = 0.0
    translation: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    shear_deg: tuple[float, float] = (0.0, 0.0)

    def warp(self, maps: Tensor, interpolation: InterpolationMode, fill: float) -> Tensor:
        """Warp ``[C, H, W]``; what comes from outside the image is ``fill``."""
        if self == Geometry():
            return maps
        height, width = maps.shape[-2:]
        right, down = self.translation
        # torchvision's own fill weighs the half-covered border pixels twice; its default of 0 is
        # exact.
        moved = affine(
            maps - fill,
            angle=self.rotation_deg,
            translate=[right * width, down * height],
            scale=self.scale,
            shear=list(self.shear_deg),
            interpolation=interpolation,
        )
        return moved + fill


@dataclass(frozen=True)
class Appearance:
    """Colour jitter of a grey image, as torchvision defines the factors; the default changes
    nothing."""

    brightness: float = 1.0
    contrast: float = 1.0
    gamma: float = 1.0

    def apply(self, image: Tensor) -> Tensor:
        """Jitter an image float32 ``[1, H, W]`` in [0, 1]; the result stays there."""
        if self == Appearance():
            return image
        image = adjust_brightness(image, self.brightness)
        image = adjust_contrast(image, self.contrast)
        return adjust_gamma(image, self.gamma)
