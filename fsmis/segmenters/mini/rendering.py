"""Intensities of label maps: contrast and texture per label, then the effects of a scanner.

In MR every label may have any intensity. CT is in units of 400 HU: soft tissues within a few
percent of each other, fat below them, bone far above, gas far below.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fsmis.segmenters.mini.bodies import (
    AIR,
    BONE,
    FAT,
    TISSUE,
    Draw,
    OrganLabels,
    SyntheticSettings,
)


def render(settings: SyntheticSettings, labels: Tensor, organs: OrganLabels, draw: Draw) -> Tensor:
    """Intensities float32 ``[B, F, S, S]`` in [0, 1] of label maps."""
    batch, frames, size, _ = labels.shape

    def per_frame(low: float, high: float) -> Tensor:
        return draw.uniform(low, high, batch, frames, 1, 1)

    ct = draw.chance(settings.ct, batch)
    mean = torch.where(ct[:, None], _ct_means(organs, draw), _mr_means(settings, organs, draw))
    mean = _alike(settings, mean, organs, draw)[:, None]
    change = settings.contrast_change * draw.uniform(0, 1, batch, 1, 1) ** 2 * 3
    change = torch.where(ct.view(-1, 1, 1), 0.5 * change, change)
    mean = mean + change * draw.normal(batch, frames, organs.count)
    flatness = torch.where(ct, 0.15, 1.0).view(1, -1, 1, 1)
    coarse_share, fine_share = (
        flatness * settings.texture * draw.uniform(0, 1, 2, batch, 1, organs.count) ** 2
    ).expand(2, batch, frames, organs.count)
    flat = labels.flatten(2)

    def of_label(values: Tensor) -> Tensor:
        return values.gather(2, flat).view_as(labels)

    image = of_label(mean)
    image = image + of_label(coarse_share) * draw.smooth(size // 5, size, batch, frames)
    image = image + of_label(fine_share) * draw.normal(batch, frames, size, size)
    image = image + _vessels(settings, labels, draw)
    of_ct = ct.view(-1, 1, 1, 1)
    image = image + of_ct * _couch(labels, draw)
    # Partial volume and unequal resolution: mixed with its own average along either axis.
    for kernel in ((3, 1), (1, 3), (3, 1), (1, 3)):
        padding = (kernel[0] // 2, kernel[1] // 2)
        blurred = F.avg_pool2d(image, kernel, 1, padding, count_include_pad=False)
        image = image.lerp(blurred, per_frame(0, 1))
    bias = settings.bias_field * per_frame(0, 1) * draw.smooth(3, size, batch, frames)
    image = image * torch.where(of_ct, 0.0, bias).exp()
    image = image + _artefacts(image, draw)
    sigma = settings.noise * per_frame(0, 1) ** 2 * 2
    noisy = image + sigma * draw.normal(*image.shape)
    rician = (noisy**2 + (sigma * draw.normal(*image.shape)) ** 2).sqrt()
    image = torch.where(draw.chance(0.5, batch, frames, 1, 1) & ~of_ct, rician, noisy)
    return _window(settings, image, ct, draw)


def _ct_means(organs: OrganLabels, draw: Draw) -> Tensor:
    """Mean intensity of every label, ``[B, L]``, in CT and units of 400 HU."""
    batch, labels = len(organs.twin), organs.count
    soft = draw.uniform(0.05, 0.25, batch, 1)
    mean = soft + draw.uniform(0.01, 0.08, batch, 1) * draw.normal(batch, labels)
    enhanced = draw.chance(0.25, batch, labels) & draw.chance(0.7, batch, 1)
    # Of one brightness in half of the bodies, as blood is.
    rise = torch.where(
        draw.chance(0.5, batch, 1),
        draw.uniform(0.05, 0.5, batch, 1) + 0.02 * draw.normal(batch, labels),
        draw.uniform(0.05, 0.5, batch, labels),
    )
    mean = torch.where(enhanced, soft + rise, mean)
    fat = draw.uniform(-0.3, -0.2, batch, 1)
    for share, value in (
        (0.2, fat + 0.03 * draw.normal(batch, labels)),
        (0.04, draw.uniform(0.4, 2.5, batch, labels)),  # bone
        (0.04, draw.uniform(-2.5, -1.5, batch, labels)),  # gas and lung
    ):
        mean = torch.where(draw.chance(share, batch, labels), value, mean)
    mean[:, AIR], mean[:, FAT] = -2.5, fat[:, 0]
    mean[:, BONE] = draw.uniform(0.4, 2.5, batch)
    return mean


def _alike(settings: SyntheticSettings, mean: Tensor, organs: OrganLabels, draw: Draw) -> Tensor:
    """Give twins the same means, and some crescents that of the core beside them, as both
    ventricles hold blood."""
    for organ in range(organs.twin.shape[1] - 1):
        shell = organs.first + 2 * organ
        filled = organs.crescent[:, organ] & organs.has_core[:, organ + 1]
        filled = filled & draw.chance(settings.blood, len(mean))
        mean[:, shell] = torch.where(filled, mean[:, shell + 3], mean[:, shell])
    for organ in range(1, organs.twin.shape[1]):
        shell = organs.first + 2 * organ
        twin = organs.twin[:, organ, None]
        before = mean[:, shell - 2 : shell]
        mean[:, shell : shell + 2] = torch.where(twin, before, mean[:, shell : shell + 2])
    return mean


def _mr_means(settings: SyntheticSettings, organs: OrganLabels, draw: Draw) -> Tensor:
    batch = len(organs.twin)
    mean = draw.uniform(0.05, 1, batch, organs.count)
    dark_air = draw.chance(0.9, batch)
    mean[:, AIR] = torch.where(dark_air, 0.02, mean[:, AIR])
    tissues = mean[:, TISSUE : organs.first]
    # In some bodies tissues hardly differ from one another.
    middle = tissues.mean(1, keepdim=True)
    spread = draw.uniform(0.15, 1, batch, 1)
    mean[:, TISSUE : organs.first] = middle + spread * (tissues - middle)
    for organ in range(organs.has_core.shape[1]):
        shell = organs.first + 2 * organ
        near = mean[:, TISSUE] + 0.12 * draw.normal(batch)
        mean[:, shell] = torch.where(draw.chance(0.3, batch), near, mean[:, shell])
        near = mean[:, shell] + 0.15 * draw.normal(batch)
        mean[:, shell + 1] = torch.where(draw.chance(0.3, batch), near, mean[:, shell + 1])
    of_few = draw.chance(settings.materials, batch, 1)
    return torch.where(of_few, _few_materials(organs, draw), mean).clamp(0, 1.1)


def _few_materials(organs: OrganLabels, draw: Draw) -> Tensor:
    """Means ``[B, L]`` where many labels are of the same few materials, as blood, muscle and fluid
    are in many places, so that brightness alone does not tell an organ."""
    batch, labels = len(organs.twin), organs.count
    most = 7
    count = draw.uniform(3, most + 1, batch, 1).long().clamp(max=most)
    material = (draw.uniform(0, 1, batch, labels) * count).long().clamp(max=most - 1)
    shells, cores = slice(organs.first, None, 2), slice(organs.first + 1, None, 2)
    apart = 1 + (draw.uniform(0, 1, *material[:, cores].shape) * (count - 1)).long()
    material[:, cores] = (material[:, shells] + apart) % count
    palette = draw.uniform(0.05, 1, batch, most)
    mean = palette.gather(1, material) + 0.03 * draw.normal(batch, labels)
    mean[:, AIR] = torch.where(draw.chance(0.9, batch), 0.02, mean[:, AIR])
    return mean


def _vessels(settings: SyntheticSettings, labels: Tensor, draw: Draw) -> Tensor:
    batch, frames, size, _ = labels.shape
    strength = settings.vessels * draw.chance(0.5, batch, 1, 1, 1) * draw.normal(batch, 1, 1, 1)
    dense = draw.uniform(1.4, 2.4, batch, 1, 1, 1)
    spots = draw.smooth(int(draw.uniform(10, 32, 1)), size, batch, frames) > dense
    return strength * (spots & (labels != AIR))


def _couch(labels: Tensor, draw: Draw) -> Tensor:
    batch, _, size, _ = labels.shape
    axis = torch.linspace(-1, 1, size, device=labels.device)
    place, bend = draw.uniform(0.5, 0.95, batch, 1, 1), draw.uniform(-0.2, 0.2, batch, 1, 1)
    side = draw.normal(batch, 1, 1).sign()
    away = side * axis[:, None] - place - bend * axis**2
    bar = (away.abs() < draw.uniform(0.01, 0.04, batch, 1, 1)) & draw.chance(0.5, batch, 1, 1)
    return draw.uniform(1, 3, batch, 1, 1, 1) * (bar[:, None] & (labels == AIR))


def _artefacts(image: Tensor, draw: Draw) -> Tensor:
    batch, frames, size, _ = image.shape
    ghost = draw.chance(0.1, batch, frames, 1, 1) * draw.uniform(0, 0.15, batch, frames, 1, 1)
    shifted = image.roll(int(draw.uniform(0.1, 0.5, 1) * size), 2)
    axis = torch.linspace(-1, 1, size, device=image.device)
    radius = (axis[:, None] ** 2 + axis**2).sqrt()
    rings = (radius * draw.uniform(20, 80, batch, frames, 1, 1)).cos()
    ring = draw.chance(0.1, batch, frames, 1, 1) * draw.uniform(0, 0.05, batch, frames, 1, 1)
    return ghost * shifted + ring * rings


def _window(settings: SyntheticSettings, image: Tensor, ct: Tensor, draw: Draw) -> Tensor:
    """Scale to [0, 1], between jittered percentiles or (for some CTs) by a soft-tissue window, then
    apply a random gamma."""
    batch, frames, size, _ = image.shape
    sample = image.flatten(2)[:, :, :: max(1, size * size // 4096)]
    low, high = torch.quantile(sample, torch.tensor([0.005, 0.995], device=image.device), dim=2)
    width = (high - low).clamp(min=1e-3)
    high = high + width * draw.uniform(-0.15, 0.15, batch, frames)
    low = low + width * draw.uniform(-0.03, 0.03, batch, frames)
    windowed = (ct & draw.chance(0.6, batch))[:, None]
    half = 0.5 * draw.uniform(0.6, 1.4, batch, 1)
    level = draw.uniform(0, 0.25, batch, 1)
    low = torch.where(windowed, level - half + 0.03 * draw.normal(batch, frames), low)
    high = torch.where(windowed, level + half + 0.03 * draw.normal(batch, frames), high)
    scaled = (image - low[..., None, None]) / (high - low)[..., None, None].clamp(min=1e-3)
    gamma = (settings.gamma * draw.normal(batch, frames, 1, 1)).exp()
    return scaled.clamp(1e-6, 1) ** gamma
