"""Settings of the synthetic data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


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
    shape_turn: float
    lobes: float
    tissue_change: float
    girth_change: float
    thinnest: float
    ct: float
    materials: float
    blood: float
    contrast_change: float
    texture: float
    vessels: float
    noise: float
    bias_field: float
    gamma: float
    absent: float
    smallest: float
    largest: float


class Draw:
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


AIR, FAT, BONE, TISSUE = 0, 1, 2, 3  # labels; tissues count up from TISSUE, organs follow


@dataclass(frozen=True)
class Points:
    """Where in its body every pixel lies.

    Attributes:
        x, y: ``[B, F, S, S]``; a body lies within -1 and 1.
        height: ``[B, F, 1, 1]``.
        origin: x and y ``[B, 1, 1, 1]`` around which tissues are laid.
        detail: ``[B, 1, 1, 1]``, size of tissues, 1 where the whole body is in view.
    """

    x: Tensor
    y: Tensor
    height: Tensor
    origin: tuple[Tensor, Tensor]
    detail: Tensor


# Of twins, what is the same and what of the other sign.
SAME = (
    *("y", "a", "b", "core", "middle", "reach", "wobble", "stretch"),
    *("lobe", "lobe_x", "lobe_middle"),
)
MIRRORED = ("x", "bend", "bend_above", "twist", "lobe_y")


class Organs:
    """Parameters of O organs in B bodies, each a shell around a core, and how to paint them."""

    def __init__(self, settings: SyntheticSettings, batch: int, frames: int, draw: Draw):
        count = settings.organs
        self.settings = settings
        self.x = draw.uniform(-0.65, 0.65, batch, count)
        self.y = draw.uniform(-0.55, 0.55, batch, count)
        # Large organs lie below small ones, so that they are not cut to pieces.
        largest = torch.linspace(math.log(0.65), math.log(0.2), count, device=self.x.device)
        smallest = math.log(0.05)
        length = (smallest + (largest - smallest) * draw.uniform(0, 1, batch, count)).exp()
        aspect = draw.uniform(0, 1, batch, count) ** 2 * 1.4
        self.a, self.b = length, (length * (-aspect).exp()).clamp(min=0.025)
        self.angle = draw.uniform(0, math.pi, batch, count)
        self.bend = draw.normal(batch, count) * 0.6
        self.wobble = draw.uniform(0, 0.4, batch, count)
        # Where a core is, the shell is this share of the radius; thin ones are walls, a myocardium.
        wall = draw.uniform(math.log(settings.thinnest), math.log(0.6), batch, count).exp()
        self.core = torch.where(draw.chance(0.45, batch, count), 1 - wall, 0.0)
        self.middle = draw.normal(batch, count) * 0.6
        self.reach = draw.uniform(0.4, 1.6, batch, count)
        self.lean = draw.normal(2, batch, count) * 0.18
        # What of the shape changes along the body: a liver is no ellipsoid.
        self.bend_above = draw.normal(batch, count) * 0.6
        self.twist = draw.normal(batch, count) * settings.shape_turn * 0.25
        self.stretch = draw.normal(batch, count) * settings.shape_turn * 0.2
        # A second lobe of some organs lies beside the first and ends elsewhere.
        lobed = draw.chance(settings.lobes, batch, count) & (self.core == 0)
        self.lobe = torch.where(lobed, draw.uniform(0.5, 1, batch, count), 0.0)
        self.lobe_x = draw.uniform(0.4, 1.3, batch, count) * draw.normal(batch, count).sign()
        self.lobe_y = draw.uniform(-0.8, 0.8, batch, count)
        self.lobe_middle = draw.normal(batch, count) * 0.5
        self.twin = torch.zeros(batch, count, dtype=torch.bool, device=self.x.device)
        self.crescent = torch.zeros_like(self.twin)
        self._mirror_some(draw)
        self._lay_crescents(draw)
        change = settings.shape_change
        self.move = draw.normal(2, batch, frames, count) * change * 0.3
        self.swell = (draw.normal(batch, frames, count) * change).exp()
        self.core_change = draw.normal(batch, frames, count) * change * 1.5
        self.turn = draw.normal(2, batch, frames, count) * change * 2  # of the shape, the angle
        self.draw = draw

    def _mirror_some(self, draw: Draw) -> None:
        """Make the last organs mirrored twins of those before them, like kidneys.

        Some twins begin where the other ends.
        """
        for twin in range(self.settings.organs - 1, self.settings.organs - 5, -2):
            twins = draw.chance(0.6, len(self.x))
            mirror = {"angle": math.pi - self.angle}
            mirror |= {name: -getattr(self, name) for name in MIRRORED}
            for name in (*SAME, *mirror):
                values = getattr(self, name)
                source = mirror.get(name, values)[:, twin - 1]
                values[:, twin] = torch.where(twins, source, values[:, twin])
            self.twin[:, twin] = twins
            away = draw.uniform(0.3, 1.4, len(self.x)) * draw.normal(len(self.x)).sign()
            apart = twins & draw.chance(0.5, len(self.x))
            self.middle[:, twin] += torch.where(apart, away, 0.0)

    def _lay_crescents(self, draw: Draw) -> None:
        """Let a later organ cut an earlier one to a crescent, like the ventricles."""
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
            self.crescent[:, organ] = beside
            ring = torch.where(
                draw.chance(0.7, len(self.x)) & beside,
                draw.uniform(0.55, 0.9, len(self.x)),
                self.core[:, host],
            )
            self.core[:, host] = ring
            self.lobe[:, host] = torch.where(ring > 0, 0.0, self.lobe[:, host])

    def centre(self, height: Tensor) -> tuple[Tensor, Tensor]:
        x = self.x[:, None] + self.lean[0][:, None] * height[..., None] + self.move[0]
        y = self.y[:, None] + self.lean[1][:, None] * height[..., None] + self.move[1]
        return x, y

    def growth(self, height: Tensor) -> Tensor:
        """Size ``[B, F, O]`` of every organ at ``height`` ``[B, F]``; 1 in its middle before it
        swells or shrinks, 0 beyond its end."""
        away = (height[..., None] - self.middle[:, None]) / self.reach[:, None]
        return (1 - away**2).clamp(min=0).sqrt() * self.swell

    def paint(self, labels: Tensor, points: Points) -> OrganLabels:
        """Paint the organs into ``labels`` in place, later over earlier ones."""
        batch, frames = points.x.shape[:2]
        count = self.settings.organs
        height = points.height[:, :, 0, 0]
        away = height[..., None] - self.middle[:, None]
        turn = self.settings.shape_turn * away + self.turn[0]
        bends = turn.cos() * self.bend[:, None] + turn.sin() * self.bend_above[:, None]
        turn = turn.flatten(0, 1)[..., None, None]
        low, high = self.draw.smooth(6, 24, 2, batch, count).repeat_interleave(frames, 1)
        fields = turn.cos() * low + turn.sin() * high
        angles = self.angle[:, None] + self.twist[:, None] * away + self.turn[1]
        stretches = (self.stretch[:, None] * away).exp()
        lobe_away = (away - self.lobe_middle[:, None]) / self.reach[:, None]
        lobes = self.lobe[:, None] * (1 - lobe_away**2).clamp(min=1e-6).sqrt()
        core = 1 - (1 - self.core[:, None]) * self.core_change.exp()
        cores = core.clamp(max=0.95) * (self.core[:, None] > 0)
        centres = self.centre(height)
        growth = self.growth(height).clamp(min=1e-3)
        inside = labels >= BONE
        first = TISSUE + self.settings.tissues
        for organ in range(count):
            u = points.x - centres[0][:, :, organ, None, None]
            v = points.y - centres[1][:, :, organ, None, None]
            angle, stretch, bend, grown, lobe = (
                values[:, :, organ, None, None]
                for values in (angles, stretches, bends, growth, lobes)
            )
            a, b = (length[:, organ].view(-1, 1, 1, 1) for length in (self.a, self.b))
            cos, sin = angle.cos(), angle.sin()
            along = (cos * u + sin * v) / (a * stretch)
            across = (cos * v - sin * u) / (b / stretch) + bend * (along**2 - 0.5 * grown**2)
            grid = torch.stack((along, across), -1).flatten(0, 1) / 2
            field = F.grid_sample(fields[:, organ, None], grid, align_corners=False)
            wobble = self.wobble[:, organ].view(-1, 1, 1, 1) * field.view_as(along)
            radius = (along**2 + across**2).sqrt() / grown
            lobe_x, lobe_y = (v[:, organ].view(-1, 1, 1, 1) for v in (self.lobe_x, self.lobe_y))
            beside = ((along - lobe_x) ** 2 + (across - lobe_y) ** 2).sqrt()
            radius = torch.minimum(radius, beside / lobe.clamp(min=1e-3)) + wobble
            shell = inside & (radius < 1)
            labels.masked_fill_(shell, first + 2 * organ)
            core = cores[:, :, organ, None, None]
            labels.masked_fill_(shell & (radius < core), first + 2 * organ + 1)
        return OrganLabels(first, self.core > 0, self.twin, self.crescent)


@dataclass(frozen=True)
class OrganLabels:
    """Label ``first + 2 o`` is the shell of organ o and ``first + 2 o + 1`` its core.

    ``has_core``, ``twin`` (organ o looks like organ o - 1) and ``crescent`` (organ o lies beside
    organ o + 1) are bool ``[B, O]``.
    """

    first: int
    has_core: Tensor
    twin: Tensor
    crescent: Tensor

    @property
    def count(self) -> int:
        return self.first + 2 * self.has_core.shape[1]
