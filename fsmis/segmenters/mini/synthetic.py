"""Synthetic support and query slices: random bodies seen twice, the way two patients differ.

No real image is used, so a model trained on these has seen no fold, dataset or organ. Label maps
come first, then intensities for each label, as in SynthMorph (Hoffmann et al., IEEE TMI 2022) and
UniverSeg's synthetic tasks (Butoi et al., ICCV 2023).

A body is a set of label functions over the plane that change with height z: tissues (argmax of
smooth random fields) inside an outline with a rim of fat and ribs, and organs painted over them
(bent ellipsoids and lobes whose outline changes with height, rings, crescents beside rings,
mirrored pairs). A frame evaluates them at affinely and smoothly deformed coordinates at its own
height, over the whole body or cut around an organ, with tissues and fat that are partly its own.
The query, and any support but the first, may lack the target: it lies beyond the organ's end, in
another part of the body, or shows only the organ's twin.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fsmis.segmenters.mini.bodies import (
    AIR,
    BONE,
    FAT,
    TISSUE,
    Draw,
    OrganLabels,
    Organs,
    Points,
    SyntheticSettings,
)
from fsmis.segmenters.mini.rendering import render


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

    Everything is computed on the device of ``generator``.
    """
    draw = Draw(generator)
    organs = Organs(settings, batch, frames, draw)
    views = draw_views(settings, organs, frames, draw)
    points = points_of(settings, views, size, draw)
    labels = tissue_labels(settings, points, draw)
    organ_labels = organs.paint(labels, points)
    images = render(settings, labels, organ_labels, draw)
    return SyntheticBatch(images, _targets(settings, labels, organ_labels, views.organ, draw))


def _targets(
    settings: SyntheticSettings, labels: Tensor, organs: OrganLabels, focus: Tensor, draw: Draw
) -> Tensor:
    """Masks bool ``[B, K, F, S, S]`` of targets: organs, their shells and cores, tissues.

    ``focus`` int ``[B]`` is the organ around which the views are cut; it is the first target.
    """
    batch, frames, size, _ = labels.shape
    count = organs.has_core.shape[1]
    identity = torch.eye(organs.count, dtype=torch.bool, device=labels.device)
    shells, cores = identity[organs.first :: 2], identity[organs.first + 1 :: 2]
    tissues = identity[TISSUE : organs.first]
    table = torch.cat((shells | cores, shells, cores, tissues))
    onehot = torch.zeros(batch, frames, organs.count, device=labels.device)
    ones = torch.ones_like(labels, dtype=torch.float32).flatten(2)
    area = onehot.scatter_add_(2, labels.flatten(2), ones) @ table.T.float() / size**2
    support = area[:, 0]
    looked_at = torch.arange(count, device=labels.device) == focus[:, None]
    liked = torch.where(looked_at, 6.0, 1.0)
    weight = torch.cat(
        (
            liked,
            liked * organs.has_core * 0.7,
            liked * organs.has_core * 0.7,
            torch.full((batch, len(tissues)), 0.05, device=labels.device),
        ),
        1,
    )
    fits = (support > settings.smallest) & (support < settings.largest)
    weight = weight * fits
    shown = area[:, -1] > settings.smallest / 4
    # As many targets that the query lacks as are wanted, wherever there is one.
    has, lacks = (weight * shown).sum(1, True), (weight * ~shown).sum(1, True)
    share = settings.absent / (1 - settings.absent)
    weight = weight * torch.where(shown, 1.0, share * has / lacks.clamp(min=1e-6))
    weight = weight + 1e-6 * (area[:, 0] > 0) + 1e-12
    chosen = torch.multinomial(weight, settings.targets, generator=draw.generator)
    rows = torch.arange(batch, device=labels.device).view(-1, 1, 1, 1, 1)
    ranks = torch.arange(settings.targets, device=labels.device).view(1, -1, 1, 1, 1)
    return table[chosen][rows, ranks, labels[:, None]]


def tissue_labels(settings: SyntheticSettings, points: Points, draw: Draw) -> Tensor:
    """Label map int64 ``[B, F, S, S]`` of air, fat, bone and tissues."""
    x, y = points.x, points.y
    batch, frames, size, _ = x.shape
    cells = int(draw.uniform(5, 14, 1))
    low, high = draw.smooth(cells, 48, 2, batch, 1, settings.tissues)
    turn = (1.5 * points.height)[:, :, None]
    fields = turn.cos() * low + turn.sin() * high
    # Two patients share their organs, not the gut and fat between them.
    change = draw.uniform(0, settings.tissue_change, batch, 1, 1, 1, 1)
    own = draw.smooth(cells, 48, batch, frames, settings.tissues)
    fields = (change.cos() * fields + change.sin() * own).flatten(0, 1)
    across, along = (x - points.origin[0]), (y - points.origin[1])
    grid = torch.stack((across, along), -1) / (1.6 * points.detail[..., None])
    fields = F.grid_sample(
        fields, grid.flatten(0, 1), padding_mode="reflection", align_corners=False
    )
    highest = fields.max(1).indices  # four times as fast on a CPU as argmax
    labels = (TISSUE + highest).view(batch, frames, size, size)

    def per_body(low: float, high: float) -> Tensor:
        return draw.uniform(low, high, batch, 1, 1, 1)

    # A quarter of the bodies is cropped: the outline lies outside the view.
    girth = torch.where(draw.chance(0.25, batch, 1, 1, 1), per_body(1.6, 2), per_body(0.75, 1))
    girth = girth * (settings.girth_change * draw.normal(batch, frames, 1, 1)).exp()
    angle = torch.atan2(y, x)
    wobble = per_body(0, 0.06) * (2 * angle + per_body(0, 6)).cos()
    wobble = wobble + per_body(0, 0.04) * (3 * angle + per_body(0, 6)).cos()
    power = per_body(1.8, 3.2)
    outline = x.abs() ** power + (y.abs() / per_body(0.6, 1)) ** power
    radius = outline ** (1 / power) / girth + wobble
    rim = (
        1 - per_body(0, 0.2) * (4 * settings.girth_change * draw.normal(batch, frames, 1, 1)).exp()
    )
    ribs = (radius - rim + per_body(0.02, 0.12)).abs() < per_body(0.01, 0.05)
    ribs &= (per_body(3, 14) * angle + 4 * points.height + per_body(0, 6)).cos() > per_body(-0.5, 1)
    labels = torch.where(ribs & draw.chance(0.6, batch, 1, 1, 1), BONE, labels)
    labels = torch.where(radius > rim, FAT, labels)
    return torch.where(radius > 1, AIR, labels)


WHOLE = -1  # in place of an organ: the whole body is in view


@dataclass(frozen=True)
class Views:
    """Where the frames of B bodies look; the last frame is the query.

    Attributes:
        height: ``[B, F]``.
        x, y: centre of each view in its body ``[B, F]``.
        half: half a view's side ``[B, F]``, 1 where the whole body is seen.
        organ: int ``[B]``, the organ around which the views are cut, or WHOLE.
        effort: ``[B]``, how far the frames lie apart, from two slices of a patient to two patients.
    """

    height: Tensor
    x: Tensor
    y: Tensor
    half: Tensor
    organ: Tensor
    effort: Tensor


def draw_views(settings: SyntheticSettings, organs: Organs, frames: int, draw: Draw) -> Views:
    """Views of the whole body, or cut around an organ as in the zoom pass, less exactly centred in
    the query."""
    batch = len(organs.x)
    effort = draw.uniform(0.2, 1.2, batch, 1)
    height = 0.5 * draw.normal(batch, 1)
    height = height + effort * settings.height_change * draw.normal(batch, frames)
    away = torch.where(
        draw.chance(settings.elsewhere, batch, frames),
        draw.uniform(2, 4, batch, frames),
        draw.chance(settings.beyond, batch, frames) * draw.uniform(0.4, 1.8, batch, frames),
    )
    # The first support alone is sure to show what is asked for.
    height[:, 1:] += away[:, 1:] * draw.normal(batch, frames - 1).sign()

    x, y = (
        settings.shift * (draw.normal(batch, 1) + effort * draw.normal(batch, frames))
        for _ in range(2)
    )
    half = torch.ones(batch, frames, device=x.device)

    extent = torch.maximum(organs.a, organs.b)
    extent = extent * organs.growth(height)[:, :-1].amax(1)
    seen = organs.growth(height)[:, 0] > 0.3
    organ = torch.multinomial(seen + 1e-6, 1, generator=draw.generator)
    cut = draw.chance(settings.cropped, batch) & seen.gather(1, organ)[:, 0]
    low, high = torch.tensor(list(settings.crop_factor)).log().tolist()
    side = extent.gather(1, organ) * draw.uniform(low, high, batch, 1).exp()
    side = side.clamp(0.05, 1.2)

    # Now and then the query's view lies on another organ, the look-alike where there is one.
    other = torch.randint(organs.x.shape[1], (batch, 1), generator=draw.generator, device=x.device)
    before = (organ - 1).clamp(min=0)
    other = torch.where(organs.twin.gather(1, organ), before, other)
    misplaced = draw.chance(settings.misplaced, batch, 1)
    looked_at = organ.repeat(1, frames)
    looked_at[:, -1:] = torch.where(misplaced, other, organ)
    miss = torch.full((frames,), 0.12, device=x.device)
    miss[-1] = 0.25
    centres = [
        c.gather(2, looked_at[..., None])[..., 0] + miss * side * draw.normal(batch, frames)
        for c in organs.centre(height)
    ]
    x, y = (torch.where(cut[:, None], c, whole) for c, whole in zip(centres, (x, y), strict=True))
    half = torch.where(cut[:, None], side, half)

    change = settings.field_of_view * draw.uniform(-1, 1, batch)
    half[:, -1] *= torch.where(draw.chance(0.3, batch), change.exp(), 1.0)
    return Views(height, x, y, half, torch.where(cut, organ[:, 0], WHOLE), effort[:, 0])


def points_of(settings: SyntheticSettings, views: Views, size: int, draw: Draw) -> Points:
    """The body coordinates of every pixel of the views, each turned, stretched and bent."""
    axis = torch.linspace(-1, 1, size, device=views.x.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    batch, frames = views.x.shape
    effort = views.effort.view(-1, 1, 1, 1)

    def both(spread: float, common: float) -> Tensor:
        shared = common * draw.normal(batch, 1, 1, 1)
        return shared + effort * spread * draw.normal(batch, frames, 1, 1)

    angle = both(settings.rotation, settings.rotation)
    zoom = both(settings.scaling, 0.2).exp()
    stretch = both(settings.scaling / 2, 0.1).exp()
    cos, sin = angle.cos(), angle.sin()
    x, y = zoom * stretch * (cos * x - sin * y), zoom / stretch * (sin * x + cos * y)
    amplitude = settings.displacement * effort[..., None]
    for cells, share in ((4, 1.0), (9, 0.35)):
        dx, dy = (amplitude * share * draw.smooth(cells, size, batch, frames, 2)).unbind(2)
        x, y = x + dx, y + dy

    def wide(values: Tensor) -> Tensor:
        return values[..., None, None]

    # Seen from near, a body shows finer tissues, though not as much finer as it is nearer.
    cut = (views.organ != WHOLE).view(-1, 1, 1, 1)
    origin_x, origin_y = (torch.where(cut, wide(c[:, :1]), 0.0) for c in (views.x, views.y))
    detail = torch.where(cut, wide(views.half[:, :1]) ** 0.7, 1.0)
    return Points(
        wide(views.x) + wide(views.half) * x,
        wide(views.y) + wide(views.half) * y,
        wide(views.height),
        (origin_x, origin_y),
        detail,
    )
