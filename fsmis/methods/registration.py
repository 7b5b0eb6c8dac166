"""The classical answer to one labelled slice: register it to the query, carry its mask along."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from skimage.transform import resize

from fsmis.data.protocol import Episode
from fsmis.methods import Method

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AffineSettings:
    """Affine registration by correlation, from aligned centres of mass; keys as in the YAML."""

    iterations: int
    step_mm: float
    min_step_mm: float
    gradient_tolerance: float
    shrink_factors: Sequence[int]
    smoothing_mm: Sequence[float]


@dataclass(frozen=True)
class DemonsSettings:
    """Deformation after the affine by symmetric-forces demons; keys as in the YAML."""

    iterations: int
    shrink_factors: Sequence[int]
    smoothing_pixels: float


class Registration(Method):
    """Register the support slice of each part to the query slice with SimpleITK.

    A correlation-driven affine is refined by fast symmetric-forces demons (Vercauteren et al.,
    MICCAI 2007). Where demons fail the affine is used; where that fails too, the mask stays where
    it is, with the centres of the slices aligned.

    Attributes:
        outcomes: registrations so far that ended as ``demons``, ``affine`` or ``none``.
    """

    def __init__(self, pixel_mm: float, affine: AffineSettings, demons: DemonsSettings) -> None:
        self._pixel_mm = pixel_mm
        self._affine = affine
        self._demons = demons
        self.outcomes: Counter[str] = Counter()

    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        support_mm, query_mm = episode.support.spacing[1:], episode.query.spacing[1:]
        support, query = episode.support.image, episode.query.image
        transforms: dict[tuple[int, int], sitk.Transform] = {}
        segmented = {}
        for organ, task in episode.organs.items():
            masks = []
            for z, part in zip(task.query_slices, task.part, strict=True):
                fixed = _image(query[z], query_mm)
                pair = int(task.support_slices[part]), int(z)
                if pair not in transforms:
                    moving = _image(support[pair[0]], support_mm)
                    transforms[pair] = self.register(fixed, moving)
                mask = _image(task.support_masks[part], support_mm)
                warped = sitk.Resample(mask, fixed, transforms[pair], sitk.sitkLinear, 0.0)
                masks.append(sitk.GetArrayFromImage(warped) >= 0.5)
            segmented[organ] = np.stack(masks)
        return segmented

    def register(self, fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
        """Transform of points of ``fixed`` (query) to ``moving`` (support), both 2-D and in mm."""
        result, outcome = sitk.Transform(2, sitk.sitkIdentity), "none"
        try:
            fixed, moving = self._coarse(fixed), self._coarse(moving)
            affine = _register_affine(fixed, moving, self._affine)
            _require_finite(affine.GetParameters())
            result, outcome = affine, "affine"
            result, outcome = _refine_by_demons(fixed, moving, affine, self._demons), "demons"
        except (RuntimeError, FloatingPointError) as error:
            reason = str(error).strip().splitlines()[-1]
            log.warning("registration stopped at stage '%s': %s", outcome, reason)
        self.outcomes[outcome] += 1
        return result

    def _coarse(self, image: sitk.Image) -> sitk.Image:
        spacing = np.array(image.GetSpacing())
        size = np.ceil(np.array(image.GetSize()) * spacing / self._pixel_mm).astype(int)
        centred = _centred(sitk.Image(size.tolist(), sitk.sitkFloat32), [self._pixel_mm] * 2)
        smooth = sitk.SmoothingRecursiveGaussian(image, self._pixel_mm / 2)
        return sitk.Resample(smooth, centred, sitk.Transform(), sitk.sitkLinear, 0.0)


def _register_affine(
    fixed: sitk.Image, moving: sitk.Image, settings: AffineSettings
) -> sitk.Transform:
    affine = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(2), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # sums of the metric depend on how threads split them
    method.SetMetricAsCorrelation()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=settings.step_mm,
        minStep=settings.min_step_mm,
        numberOfIterations=settings.iterations,
        gradientMagnitudeTolerance=settings.gradient_tolerance,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(settings.shrink_factors))
    method.SetSmoothingSigmasPerLevel(list(settings.smoothing_mm))
    method.SetInitialTransform(affine, inPlace=False)
    return method.Execute(fixed, moving)


def _refine_by_demons(
    fixed: sitk.Image, moving: sitk.Image, affine: sitk.Transform, settings: DemonsSettings
) -> sitk.Transform:
    moved = sitk.Resample(moving, fixed, affine, sitk.sitkLinear, 0.0)
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfThreads(1)
    demons.SetNumberOfIterations(settings.iterations)
    demons.SetStandardDeviations(settings.smoothing_pixels)
    field = sitk.Image(fixed.GetSize(), sitk.sitkVectorFloat64)
    field.CopyInformation(fixed)
    for factor in settings.shrink_factors:
        level = sitk.Shrink(fixed, [factor] * 2)
        field = demons.Execute(level, sitk.Shrink(moved, [factor] * 2), _on_grid(field, level))
    field = _on_grid(field, fixed)
    _require_finite(sitk.GetArrayViewFromImage(field))
    # applied from the last to the first: the field acts in the query's space
    return sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(field)])


def _on_grid(field: sitk.Image, grid: sitk.Image) -> sitk.Image:
    return sitk.Resample(
        field, grid, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64
    )


def _image(pixels: np.ndarray, spacing: Sequence[float]) -> sitk.Image:
    """Pixels [H, W] as a float image in mm, its centre at the origin; spacing is (y, x)."""
    return _centred(sitk.GetImageFromArray(pixels.astype(np.float32)), spacing[::-1])


def _centred(image: sitk.Image, spacing: Sequence[float]) -> sitk.Image:
    image.SetSpacing([float(mm) for mm in spacing])
    image.SetOrigin(
        [-(n - 1) / 2 * mm for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    )
    return image


def _require_finite(values: Sequence[float] | np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise FloatingPointError("the transform is not finite")


class CopyMask(Method):
    """Answer every query slice with the support mask of its part, resized where sizes differ."""

    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        size = episode.query.image.shape[1:]
        return {
            organ: np.stack([_fitted(mask, size) for mask in task.support_masks])[task.part]
            for organ, task in episode.organs.items()
        }


def _fitted(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if mask.shape == size:
        return mask
    soft = resize(mask.astype(np.float32), size, order=1, anti_aliasing=True)
    return soft >= np.clip(soft.max(), 1e-6, 0.5)  # of a thin one something stays
