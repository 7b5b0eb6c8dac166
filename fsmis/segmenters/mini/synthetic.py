"""Synthetic support and query slices: random bodies seen twice, the way two patients differ.

No real image is used, so a model trained on these has seen no fold, dataset or organ. Label maps
come first, then intensities for each label, as in SynthMorph (Hoffmann et al., IEEE TMI 2022) and
UniverSeg's synthetic tasks (Butoi et al., ICCV 2023).

A body is a set of label functions over the plane that change with height z: tissues (argmax of
smooth random fields) inside an outline with a rim of fat and ribs, and organs painted over them
(bent ellipsoids, rings, crescents beside rings, mirrored pairs). A frame evaluates them at affinely
and smoothly deformed coordinates at its own height, over the whole body or cut around an organ. The
query, and any support but the first, may lack the target: it lies beyond the organ's end, in
another part of the body, or shows only the organ's twin.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fsmis.segmenters.mini.bodies import (
    TISSUE,
    Draw,
    OrganLabels,
    Organs,
    SyntheticSettings,
    tissue_labels,
)
from fsmis.segmenters.mini.rendering import render
from fsmis.segmenters.mini.views import draw_views, points_of


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
            torch.full((batch, len(tissues)), 0.15, device=labels.device),
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
