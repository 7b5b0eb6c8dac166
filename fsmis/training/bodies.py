"""Label maps of random bodies: air, fat, tissues, and organs painted over them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fsmis.training.draw import Draw
from fsmis.training.settings import SyntheticSettings

AIR, FAT = 0, 1


def coordinates(
    settings: SyntheticSettings, batch: int, frames: int, size: int, draw: Draw
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


def tissue_labels(
    settings: SyntheticSettings, x: Tensor, y: Tensor, height: Tensor, draw: Draw
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


class Organs:
    """Parameters of O organs in B bodies, each a shell around a core, and how to paint them."""

    def __init__(self, settings: SyntheticSettings, batch: int, frames: int, draw: Draw):
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

    def _mirror_some(self, draw: Draw) -> None:
        """Make the last organs mirrored twins of those before them, as kidneys are."""
        for twin in range(self.settings.organs - 1, self.settings.organs - 5, -2):
            twins = draw.chance(0.6, len(self.x))
            mirror = {"x": -self.x, "angle": math.pi - self.angle, "bend": self.bend}
            for name in ("x", "y", "a", "b", "angle", "bend", "core", "middle", "reach", "wobble"):
                values = getattr(self, name)
                source = mirror.get(name, values)[:, twin - 1]
                values[:, twin] = torch.where(twins, source, values[:, twin])
            self.twin[:, twin] = twins

    def _lay_crescents(self, draw: Draw) -> None:
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
