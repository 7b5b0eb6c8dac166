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

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fsmis.training.bodies import OrganLabels, Organs, coordinates, tissue_labels
from fsmis.training.draw import Draw
from fsmis.training.rendering import render
from fsmis.training.settings import SyntheticSettings


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
    draw = Draw(generator)
    x, y, height = coordinates(settings, batch, frames, size, draw)
    labels = tissue_labels(settings, x, y, height, draw)
    organ_labels = Organs(settings, batch, frames, draw).paint(labels, x, y, height)
    images = render(settings, labels, organ_labels, draw)
    return SyntheticBatch(images, _targets(settings, labels, organ_labels, draw))


def _targets(
    settings: SyntheticSettings, labels: Tensor, organs: OrganLabels, draw: Draw
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
    weight = (
        weight * fits * torch.where(area[:, -1] > settings.smallest / 4, 1.0, settings.vanished)
    )
    weight = weight + 1e-6 * (area[:, 0] > 0) + 1e-12
    chosen = torch.multinomial(weight, settings.targets, generator=draw.generator)
    rows = torch.arange(batch, device=labels.device).view(-1, 1, 1, 1, 1)
    ranks = torch.arange(settings.targets, device=labels.device).view(1, -1, 1, 1, 1)
    return table[chosen][rows, ranks, labels[:, None]]
