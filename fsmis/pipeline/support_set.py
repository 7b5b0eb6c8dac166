"""Stage 1, Support Set Construction: one labelled support slice becomes a set of labelled copies.

Affine transforms move image and masks together; colour jitter changes the image alone. The paper's
jitter of hue and saturation (arXiv 2503.04826) has no effect on grey images; gamma takes its place.
Drawing is separate from applying, so that a set can be recorded and repeated.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import (
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    affine,
)

from fsmis.errors import UserError


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
    """Colour jitter of a grey image, with torchvision's factors; the default changes nothing."""

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


@dataclass(frozen=True)
class SupportSet:
    """N copies of a support slice with the masks of its organs.

    ``images`` are float32 ``[N, H, W]`` in [0, 1], index 0 the original; ``masks`` are bool
    ``[N, H, W]`` by organ, never empty.
    """

    images: np.ndarray
    masks: dict[str, np.ndarray]
    augmentations: tuple[tuple[Geometry, Appearance], ...] = ()


class SupportSetConstruction:
    """Augment a support slice; UserError for a setting out of its range.

    Args:
        count: copies in the set, including the original; None: see ``per_query_slice``.
        per_query_slice: N_T; the set has N_T x (query slices) + 1 copies, as in the paper.
        kind: ``none`` (only the original), ``affine``, ``jitter`` or ``both``.
        rotation_deg, translation, shear_deg: largest magnitude, see :class:`Geometry`.
        scale, brightness, contrast, gamma: ranges of factors (lowest, highest).
        min_kept: least fraction of an organ's area (adjusted for scale) that must stay inside the
            image; a geometry that keeps less of any organ is drawn again.
        max_draws: draws of a geometry before the copy keeps the original's.
    """

    def __init__(
        self,
        count: int | None,
        per_query_slice: int | None,
        kind: str,
        rotation_deg: float,
        translation: float,
        scale: tuple[float, float],
        shear_deg: float,
        brightness: tuple[float, float],
        contrast: tuple[float, float],
        gamma: tuple[float, float],
        min_kept: float,
        max_draws: int,
        seed: int,
    ):
        if kind not in ("none", "affine", "jitter", "both"):
            raise UserError(f"support_set.kind={kind}; use none, affine, jitter or both")
        if (count is None) == (per_query_slice is None):
            raise UserError(
                f"support_set.count={count} and support_set.per_query_slice={per_query_slice}; "
                "set exactly one of them and the other to null"
            )
        if (count is not None and count < 1) or (
            per_query_slice is not None and per_query_slice < 0
        ):
            raise UserError(
                f"support_set.count={count}, per_query_slice={per_query_slice}; use count >= 1 or "
                "per_query_slice >= 0"
            )
        factors = {"scale": scale, "brightness": brightness, "contrast": contrast, "gamma": gamma}
        for name, factor in factors.items():
            if len(factor) != 2 or not 0 < factor[0] <= factor[1]:
                raise UserError(f"support_set.{name}={factor}; use [lowest, highest], above 0")
        magnitudes = {
            "rotation_deg": rotation_deg,
            "translation": translation,
            "shear_deg": shear_deg,
        }
        for name, magnitude in magnitudes.items():
            if not magnitude >= 0:
                raise UserError(f"support_set.{name}={magnitude}; use 0 or more")
        if not 0 <= min_kept <= 1 or max_draws < 1:
            raise UserError(
                f"support_set.min_kept={min_kept}, max_draws={max_draws}; use a fraction in [0, 1] "
                "and at least one draw"
            )
        self.count = count
        self.per_query_slice = per_query_slice
        self.kind = kind
        self.rotation_deg = rotation_deg
        self.translation = translation
        self.scale = scale
        self.shear_deg = shear_deg
        self.brightness = brightness
        self.contrast = contrast
        self.gamma = gamma
        self.min_kept = min_kept
        self.max_draws = max_draws
        self.seed = seed

    def size(self, n_query: int) -> int:
        """Copies in the set of a support slice that serves ``n_query`` query slices."""
        if self.kind == "none":
            return 1
        if self.count is not None:
            return self.count
        assert self.per_query_slice is not None
        return self.per_query_slice * n_query + 1

    def construct(
        self, image: np.ndarray, masks: dict[str, np.ndarray], n_query: int, key: str
    ) -> SupportSet:
        """The set of one support slice; copy i depends only on the slice, seed, key and i.

        Args:
            image: float32 ``[H, W]`` in [0, 1].
            masks: organ -> bool (or 0 and 1) ``[H, W]``, of every organ that uses the slice.
            n_query: query slices the slice serves.
            key: name of the slice, such as ``chaos_mri/8/18``.

        Raises UserError for an image that is not 2-D, finite and in [0, 1], or a mask that is
        empty, not binary or of another size.
        """
        pixels, organs = _checked(image, masks, key)
        copies = [(Geometry(), Appearance())]
        copies += [self._draw(organs, key, copy) for copy in range(1, self.size(n_query))]
        fill = float(pixels.min())
        images = torch.cat(
            [
                appearance.apply(
                    geometry.warp(pixels, InterpolationMode.BILINEAR, fill).clamp(0, 1)
                )
                for geometry, appearance in copies
            ]
        )
        moved = torch.stack([_warp_masks(geometry, organs) for geometry, _ in copies], dim=1)
        by_organ = dict(zip(masks, moved.numpy().astype(bool), strict=True))
        return SupportSet(images.numpy(), by_organ, tuple(copies))

    def _draw(self, organs: Tensor, key: str, copy: int) -> tuple[Geometry, Appearance]:
        """What makes one copy: the same jitter and geometry whichever ``kind`` uses them."""
        digest = hashlib.sha256(f"{self.seed}/{key}/{copy}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        appearance = Appearance(
            brightness=rng.uniform(*self.brightness),
            contrast=rng.uniform(*self.contrast),
            gamma=rng.uniform(*self.gamma),
        )
        if self.kind == "affine":
            appearance = Appearance()
        if self.kind == "jitter":
            return Geometry(), appearance
        for _ in range(self.max_draws):
            geometry = self._draw_geometry(rng)
            if self._keeps(geometry, organs):
                return geometry, appearance
        return Geometry(), appearance

    def _draw_geometry(self, rng: np.random.Generator) -> Geometry:
        rotation, right, down, shear_x, shear_y = rng.uniform(-1, 1, size=5).tolist()
        return Geometry(
            rotation_deg=rotation * self.rotation_deg,
            translation=(right * self.translation, down * self.translation),
            scale=rng.uniform(*self.scale),
            shear_deg=(shear_x * self.shear_deg, shear_y * self.shear_deg),
        )

    def _keeps(self, geometry: Geometry, organs: Tensor) -> bool:
        area = _warp_masks(geometry, organs).sum(dim=(1, 2))
        expected = organs.sum(dim=(1, 2)) * geometry.scale**2
        return bool(((area > 0) & (area >= self.min_kept * expected)).all())


def _warp_masks(geometry: Geometry, organs: Tensor) -> Tensor:
    return geometry.warp(organs, InterpolationMode.NEAREST, fill=0.0)


def _checked(image: np.ndarray, masks: dict[str, np.ndarray], key: str) -> tuple[Tensor, Tensor]:
    if image.ndim != 2 or not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise UserError(
            f"support slice {key}: its image of shape {image.shape} must be 2-D, finite and scaled "
            "to [0, 1]"
        )
    for organ, mask in masks.items():
        if mask.shape != image.shape:
            raise UserError(
                f"support slice {key}: mask of {organ} has shape {mask.shape}, the image "
                f"{image.shape}; use a mask drawn on this slice"
            )
        if not np.isin(mask, (0, 1)).all():
            raise UserError(
                f"support slice {key}: mask of {organ} has values other than 0 and 1; binarise it"
            )
        if not mask.any():
            raise UserError(
                f"support slice {key}: mask of {organ} is empty; use a slice that shows the organ"
            )
    pixels = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]
    if not masks:
        raise UserError(f"support slice {key}: no mask; give the mask of at least one organ")
    return pixels, torch.from_numpy(np.stack(list(masks.values())).astype(np.float32))
