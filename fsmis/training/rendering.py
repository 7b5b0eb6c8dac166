"""Intensities of label maps: contrast and texture per label, then what a scanner does to them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fsmis.training.bodies import AIR, OrganLabels
from fsmis.training.draw import Draw
from fsmis.training.settings import SyntheticSettings


def render(settings: SyntheticSettings, labels: Tensor, organs: OrganLabels, draw: Draw) -> Tensor:
    """Intensities float32 ``[B, F, S, S]`` in [0, 1] of label maps."""
    batch, frames, size, _ = labels.shape

    def per_frame(low: float, high: float) -> Tensor:
        return draw.uniform(low, high, batch, frames, 1, 1)

    mean = _mean_intensities(labels, organs, draw)[:, None]
    change = settings.contrast_change * draw.uniform(0, 1, batch, 1, 1) ** 2 * 3
    mean = mean + change * draw.normal(batch, frames, organs.count)
    coarse_share, fine_share = (
        settings.texture * draw.uniform(0, 1, 2, batch, 1, organs.count) ** 2
    ).expand(2, batch, frames, organs.count)
    flat = labels.flatten(2)

    def of_label(values: Tensor) -> Tensor:
        return values.gather(2, flat).view_as(labels)

    image = of_label(mean)
    image = image + of_label(coarse_share) * draw.smooth(size // 5, size, batch, frames)
    image = image + of_label(fine_share) * draw.normal(batch, frames, size, size)
    # Partial volume and unequal resolution: mixed with its own average along either axis.
    for kernel in ((3, 1), (1, 3), (3, 1), (1, 3)):
        padding = (kernel[0] // 2, kernel[1] // 2)
        blurred = F.avg_pool2d(image, kernel, 1, padding, count_include_pad=False)
        image = image.lerp(blurred, per_frame(0, 1))
    image = (
        image * (settings.bias_field * per_frame(0, 1) * draw.smooth(3, size, batch, frames)).exp()
    )
    image = image + _artefacts(image, draw)
    sigma = settings.noise * per_frame(0, 1) ** 2 * 2
    noisy = image + sigma * draw.normal(*image.shape)
    rician = (noisy**2 + (sigma * draw.normal(*image.shape)) ** 2).sqrt()
    image = torch.where(draw.chance(0.5, batch, frames, 1, 1), rician, noisy)
    return _window(settings, image, draw)


def _mean_intensities(labels: Tensor, organs: OrganLabels, draw: Draw) -> Tensor:
    """Mean intensity of every label, ``[B, L]``."""
    batch = len(labels)
    mean = draw.uniform(0.05, 1, batch, organs.count)
    dark_air = draw.chance(0.9, batch)
    mean[:, AIR] = torch.where(dark_air, 0.02, mean[:, AIR])
    tissues = mean[:, 2 : organs.first]
    # In some bodies tissues hardly differ from one another.
    middle = tissues.mean(1, keepdim=True)
    spread = draw.uniform(0.15, 1, batch, 1)
    mean[:, 2 : organs.first] = middle + spread * (tissues - middle)
    for organ in range(organs.has_core.shape[1]):
        shell = organs.first + 2 * organ
        near = mean[:, 2] + 0.12 * draw.normal(batch)
        mean[:, shell] = torch.where(draw.chance(0.3, batch), near, mean[:, shell])
        near = mean[:, shell] + 0.15 * draw.normal(batch)
        mean[:, shell + 1] = torch.where(draw.chance(0.3, batch), near, mean[:, shell + 1])
        if organ:
            twin = organs.twin[:, organ, None]
            before = mean[:, shell - 2 : shell]
            mean[:, shell : shell + 2] = torch.where(twin, before, mean[:, shell : shell + 2])
    return mean.clamp(0, 1.1)


def _artefacts(image: Tensor, draw: Draw) -> Tensor:
    """Ghosts of motion and rings, in a tenth of the frames each."""
    batch, frames, size, _ = image.shape
    ghost = draw.chance(0.1, batch, frames, 1, 1) * draw.uniform(0, 0.15, batch, frames, 1, 1)
    shifted = image.roll(int(draw.uniform(0.1, 0.5, 1) * size), 2)
    axis = torch.linspace(-1, 1, size, device=image.device)
    radius = (axis[:, None] ** 2 + axis**2).sqrt()
    rings = (radius * draw.uniform(20, 80, batch, frames, 1, 1)).cos()
    ring = draw.chance(0.1, batch, frames, 1, 1) * draw.uniform(0, 0.05, batch, frames, 1, 1)
    return ghost * shifted + ring * rings


def _window(settings: SyntheticSettings, image: Tensor, draw: Draw) -> Tensor:
    """Scale to [0, 1] between jittered percentiles, then a random gamma."""
    batch, frames, size, _ = image.shape
    sample = image.flatten(2)[:, :, :: max(1, size * size // 4096)]
    low, high = torch.quantile(sample, torch.tensor([0.005, 0.995], device=image.device), dim=2)
    width = (high - low).clamp(min=1e-3)
    high = high + width * draw.uniform(-0.15, 0.15, batch, frames)
    low = low + width * draw.uniform(-0.03, 0.03, batch, frames)
    scaled = (image - low[..., None, None]) / (high - low)[..., None, None].clamp(min=1e-3)
    gamma = (settings.gamma * draw.normal(batch, frames, 1, 1)).exp()
    return scaled.clamp(1e-6, 1) ** gamma
