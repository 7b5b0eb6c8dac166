"""Synthetic support and query slices: random bodies seen twice, the way two patients differ.

No real image is used anywhere, so whatever a model trained on these learns, it has not seen a
fold, a dataset or an organ. In the spirit of SynthMorph (Hoffmann et al., IEEE TMI 2022) and of
UniverSeg's synthetic tasks (Butoi et al., ICCV 2023): label maps first, then intensities drawn per
label.

A body is a set of label functions over the plane that change with height z: tissues (argmax of
smooth random fields) inside an outline with a rim of fat, and organs painted over them (bent
ellipsoids, rings, crescents beside rings, mirrored pairs). A frame evaluates them at affinely and
smoothly deformed coordinates at its own height, so two frames differ in pose, shape and section.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

AIR, FAT = 0, 1


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
    smallest: float
    largest: float


@dataclass(frozen=True)
class SyntheticBatch:
    """Bodies seen in F frames; the last frame is the query, those before it supports.

    Attributes:
        images: float32 ``[B, F, S, S]`` in [0, 1].
        masks: bool ``[B, K, F, S, S]``, K targets of each body.
    """

    images: Tensor
    masks: Tensor


def sample_bodies(
    settings: SyntheticSettings, batch: int, frames: int, size: int, generator: Generator
) -> SyntheticBatch:
    """Draw ``batch`` bodies, each seen in ``frames`` slices of ``size`` x ``size`` pixels.

    Everything random comes from ``generator``, on whose device the work is done.
    """
    draw = _Draw(generator)
    x, y, height = _coordinates(settings, batch, frames, size, draw)
    labels = _tissues(settings, x, y, height, draw)
    organ_labels = _Organs(settings, batch, frames, draw).paint(labels, x, y, height)
    images = _render(settings, labels, organ_labels, draw)
    return SyntheticBatch(images, _targets(settings, labels, organ_labels, draw))


class _Draw:
    """Random tensors from one generator."""

    def __init__(self, generator: Generator):
        self.generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        device = self.generator.device
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        return self.uniform(0, 1, *shape) < probability

    def smooth(self, cells: int, size: int, *shape: int) -> Tensor:
        """Smooth fields of unit deviation, ``cells`` bumps a side: ``[*shape, size, size]``."""
        coarse = self.normal(math.prod(shape), 1, cells, cells)
        fine = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
        fine = fine / fine.std((1, 2, 3), keepdim=True).clamp(min=1e-3)
        return fine.view(*shape, size, size)


def _coordinates(
    settings: SyntheticSettings, batch: int, frames: int, size: int, draw: _Draw
) -> tuple[Tensor, Tensor, Tensor]:
    """Body coordinates x, y of every pixel ``[B, F, S, S]`` and height z ``[B, F, 1, 1]``."""
    axis = torch.linspace(-1, 1, size, device=draw.generator.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    # How far the frames of a body lie apart, from two slices of a patient to two patients.
    effort = draw.uniform(0.2, 1.2, batch, 1, 1, 1)

    def both(spread: float, common: float) -> Tensor:
        """What all frames of a body share plus what each has of its own."""
        shared = common * draw.normal(batch, 1, 1, 1)
        return shared + effort * spread * draw.normal(batch, frames, 1, 1)

    angle = both(settings.rotation, settings.rotation)
    zoom = both(settings.scaling, 0.2).exp()
    stretch = both(settings.scaling / 2, 0.1).exp()
    x = x + both(settings.shift, 0.1)
    y = y + both(settings.shift, 0.1)
    cos, sin = angle.cos(), angle.sin()
    x, y = zoom * stretch * (cos * x - sin * y), zoom / stretch * (sin * x + cos * y)
    amplitude = settings.displacement * effort[..., None]
    for cells, share in ((4, 1.0), (9, 0.35)):
        dx, dy = (amplitude * share * draw.smooth(cells, size, batch, frames, 2)).unbind(2)
        x, y = x + dx, y + dy
    height = both(settings.height_change, 0.5)
    return x, y, height


def _tissues(
    settings: SyntheticSettings, x: Tensor, y: Tensor, height: Tensor, draw: _Draw
) -> Tensor:
    """Label map int64 ``[B, F, S, S]`` of air, fat and tissues."""
    batch, frames, size, _ = x.shape
    cells = int(draw.uniform(5, 14, 1))
    low, high = draw.smooth(cells, 48, 2, batch, 1, settings.tissues)
    turn = (1.5 * height)[:, :, None]
    fields = (turn.cos() * low + turn.sin() * high).flatten(0, 1)
    grid = torch.stack((x, y), -1).flatten(0, 1) / 1.6
    fields = F.grid_sample(fields, grid, padding_mode="reflection", align_corners=False)
    labels = (2 + fields.argmax(1)).view(batch, frames, size, size)

    def per_body(low: float, high: float) -> Tensor:
        return draw.uniform(low, high, batch, 1, 1, 1)

    # A quarter of the bodies is cropped: the outline lies outside the view.
    girth = torch.where(draw.chance(0.25, batch, 1, 1, 1), per_body(1.6, 2), per_body(0.75, 1))
    angle = torch.atan2(y, x)
    wobble = per_body(0, 0.06) * (2 * angle + per_body(0, 6)).cos()
    wobble = wobble + per_body(0, 0.04) * (3 * angle + per_body(0, 6)).cos()
    power = per_body(1.8, 3.2)
    outline = x.abs() ** power + (y.abs() / per_body(0.6, 1)) ** power
    radius = outline ** (1 / power) / girth + wobble
    rim = per_body(0.8, 1.0)
    labels = torch.where(radius > rim, FAT, labels)
    return torch.where(radius > 1, AIR, labels)


class _Organs:
    """Parameters of O organs in B bodies, each a shell around a core, and how to paint them."""

    def __init__(self, settings: SyntheticSettings, batch: int, frames: int, draw: _Draw):
        count = settings.organs
        self.settings = settings
        self.x = draw.uniform(-0.65, 0.65, batch, count)
        self.y = draw.uniform(-0.55, 0.55, batch, count)
        # Large organs lie below small ones, so that they are not cut to pieces.
        largest = torch.linspace(math.log(0.65), math.log(0.3), count, device=self.x.device)
        length = torch.lerp(
            largest.new_tensor(math.log(0.08)), largest, draw.uniform(0, 1, batch, count)
        )
        length = length.exp()
        aspect = draw.uniform(0, 1, batch, count) ** 2 * 1.4
        self.a, self.b = length, (length * (-aspect).exp()).clamp(min=0.035)
        self.angle = draw.uniform(0, math.pi, batch, count)
        self.bend = draw.normal(batch, count) * 0.6
        self.wobble = draw.uniform(0, 0.25, batch, count)
        # Where a core is, it fills this share of the radius; thin shells are walls, a myocardium.
        core = draw.uniform(0.35, 0.85, batch, count)
        self.core = torch.where(draw.chance(0.45, batch, count), core, 0.0)
        self.middle = draw.normal(batch, count) * 0.6
        self.reach = draw.uniform(0.4, 1.6, batch, count)
        self.lean = draw.normal(2, batch, count) * 0.12
        self.twin = torch.zeros(batch, count, dtype=torch.bool, device=self.x.device)
        self._mirror_some(draw)
        self._lay_crescents(draw)
        change = settings.shape_change
        self.move = draw.normal(2, batch, frames, count) * change * 0.3
        self.swell = (draw.normal(batch, frames, count) * change).exp()
        self.core_change = (draw.normal(batch, frames, count) * change * 0.7).exp()
        self.draw = draw

    def _mirror_some(self, draw: _Draw) -> None:
        """Make the last organs mirrored twins of those before them, as kidneys are."""
        for twin in range(self.settings.organs - 1, self.settings.organs - 5, -2):
            twins = draw.chance(0.6, len(self.x))
            mirror = {"x": -self.x, "angle": math.pi - self.angle, "bend": self.bend}
            for name in ("x", "y", "a", "b", "angle", "bend", "core", "middle", "reach", "wobble"):
                values = getattr(self, name)
                source = mirror.get(name, values)[:, twin - 1]
                values[:, twin] = torch.where(twins, source, values[:, twin])
            self.twin[:, twin] = twins

    def _lay_crescents(self, draw: _Draw) -> None:
        """Lay an organ beside a later one, which cuts a crescent out of it, as a left ventricle
        does out of the right."""
        for organ in (0, 2):
            beside = draw.chance(0.5, len(self.x))
            host = organ + 1
            direction = draw.uniform(0, 2 * math.pi, len(self.x))
            radius = (self.a[:, host] * self.b[:, host]).sqrt()
            near = 0.9 * radius
            for name, value in (
                ("x", self.x[:, host] + near * direction.cos()),
                ("y", self.y[:, host] + near * direction.sin()),
                ("a", radius * draw.uniform(0.8, 1.3, len(self.x))),
                ("b", radius * draw.uniform(0.8, 1.3, len(self.x))),
                ("middle", self.middle[:, host]),
                ("reach", self.reach[:, host]),
            ):
                values = getattr(self, name)
                values[:, organ] = torch.where(beside, value, values[:, organ])
            ring = torch.where(
                draw.chance(0.7, len(self.x)) & beside,
                draw.uniform(0.55, 0.8, len(self.x)),
                self.core[:, host],
            )
            self.core[:, host] = ring

    def paint(self, labels: Tensor, x: Tensor, y: Tensor, height: Tensor) -> OrganLabels:
        """Paint the organs into ``labels`` in place, later over earlier ones."""
        batch, frames, size, _ = x.shape
        fields = self.draw.smooth(7, 32, batch, 4).repeat_interleave(frames, 0)
        grid = torch.stack((x, y), -1).flatten(0, 1)
        fields = F.grid_sample(fields, grid, padding_mode="reflection", align_corners=False)
        fields = fields.view(batch, frames, 4, size, size)
        inside = labels >= 2
        z = height[:, :, 0, 0]
        first = 2 + self.settings.tissues
        for organ in range(self.settings.organs):
            middle, reach = self.middle[:, None, organ], self.reach[:, None, organ]
            section = (1 - ((z - middle) / reach) ** 2).clamp(min=0).sqrt()
            grow = (section * self.swell[:, :, organ]).clamp(min=1e-3)
            lean_x, lean_y = self.lean[:, :, None, organ] * z
            u = x - (self.x[:, None, organ] + lean_x + self.move[0, :, :, organ])[..., None, None]
            v = y - (self.y[:, None, organ] + lean_y + self.move[1, :, :, organ])[..., None, None]
            cos = self.angle[:, organ].cos().view(-1, 1, 1, 1)
            sin = self.angle[:, organ].sin().view(-1, 1, 1, 1)
            a = (self.a[:, None, organ] * grow)[..., None, None]
            b = (self.b[:, None, organ] * grow)[..., None, None]
            along, across = (cos * u + sin * v) / a, (cos * v - sin * u) / b
            bend = self.bend[:, organ].view(-1, 1, 1, 1)
            across = across + bend * (along**2 - 0.5)
            wobble = self.wobble[:, organ].view(-1, 1, 1, 1) * fields[:, :, organ % 4]
            radius = (along**2 + across**2).sqrt() + wobble
            core = self.core[:, None, organ] * self.core_change[:, :, organ]
            core = core.clamp(max=0.92)[..., None, None]
            shell = inside & (radius < 1)
            labels.copy_(torch.where(shell, first + 2 * organ, labels))
            labels.copy_(torch.where(shell & (radius < core), first + 2 * organ + 1, labels))
        return OrganLabels(first, self.core > 0, self.twin)


@dataclass(frozen=True)
class OrganLabels:
    """Label ``first + 2 o`` is the shell of organ o and ``first + 2 o + 1`` its core.

    Attributes:
        first: label of the first organ's shell.
        has_core: bool ``[B, O]``.
        twin: bool ``[B, O]``, organ o looks like organ o - 1.
    """

    first: int
    has_core: Tensor
    twin: Tensor

    @property
    def count(self) -> int:
        return self.first + 2 * self.has_core.shape[1]


def _render(
    settings: SyntheticSettings, labels: Tensor, organs: OrganLabels, draw: _Draw
) -> Tensor:
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


def _mean_intensities(labels: Tensor, organs: OrganLabels, draw: _Draw) -> Tensor:
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


def _artefacts(image: Tensor, draw: _Draw) -> Tensor:
    """Ghosts of motion and rings, in a tenth of the frames each."""
    batch, frames, size, _ = image.shape
    ghost = draw.chance(0.1, batch, frames, 1, 1) * draw.uniform(0, 0.15, batch, frames, 1, 1)
    shifted = image.roll(int(draw.uniform(0.1, 0.5, 1) * size), 2)
    axis = torch.linspace(-1, 1, size, device=image.device)
    radius = (axis[:, None] ** 2 + axis**2).sqrt()
    rings = (radius * draw.uniform(20, 80, batch, frames, 1, 1)).cos()
    ring = draw.chance(0.1, batch, frames, 1, 1) * draw.uniform(0, 0.05, batch, frames, 1, 1)
    return ghost * shifted + ring * rings


def _window(settings: SyntheticSettings, image: Tensor, draw: _Draw) -> Tensor:
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


def _targets(
    settings: SyntheticSettings, labels: Tensor, organs: OrganLabels, draw: _Draw
) -> Tensor:
    """Masks bool ``[B, K, F, S, S]`` of targets: organs, their shells and cores, tissues."""
    batch, frames, size, _ = labels.shape
    identity = torch.eye(organs.count, dtype=torch.bool, device=labels.device)
    shells, cores = identity[organs.first :: 2], identity[organs.first + 1 :: 2]
    tissues = identity[2 : organs.first]
    table = torch.cat((shells | cores, shells, cores, tissues))
    onehot = torch.zeros(batch, frames, organs.count, device=labels.device)
    ones = torch.ones_like(labels, dtype=torch.float32).flatten(2)
    area = onehot.scatter_add_(2, labels.flatten(2), ones) @ table.T.float() / size**2
    support = area[:, :-1].amin(1)
    weight = torch.cat(
        (
            torch.ones_like(organs.has_core, dtype=torch.float32),
            organs.has_core * 0.7,
            organs.has_core * 0.7,
            torch.full((batch, len(tissues)), 0.15, device=labels.device),
        ),
        1,
    )
    fits = (support > settings.smallest) & (support < settings.largest)
    weight = weight * fits * torch.where(area[:, -1] > settings.smallest / 4, 1.0, 0.25)
    weight = weight + 1e-6 * (area[:, 0] > 0) + 1e-12
    chosen = torch.multinomial(weight, settings.targets, generator=draw.generator)
    rows = torch.arange(batch, device=labels.device).view(-1, 1, 1, 1, 1)
    ranks = torch.arange(settings.targets, device=labels.device).view(1, -1, 1, 1, 1)
    return table[chosen][rows, ranks, labels[:, None]]
