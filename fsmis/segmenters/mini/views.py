"""How bodies are viewed: pose, height, and the part of the body in view."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fsmis.segmenters.mini.bodies import Draw, Organs, Points, SyntheticSettings

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
