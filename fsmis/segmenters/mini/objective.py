"""The network's tasks on a synthetic batch, and the loss of its answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Generator, Tensor

from fsmis.segmenters.features import Features, Memory
from fsmis.segmenters.mini.synthetic import SyntheticBatch
from fsmis.segmenters.sam2 import Sam2
from fsmis.segmenters.steps import BACKGROUND, FOREGROUND, LOWER_RIGHT, NO_POINT, UPPER_LEFT


@dataclass(frozen=True)
class Prediction:
    """Quarter-resolution logits, predicted IoU and object score of B * K rows, and their truth."""

    logits: Tensor
    iou: Tensor
    object_score: Tensor
    truth: Tensor  # share of each quarter-resolution pixel that is foreground

    @property
    def present(self) -> Tensor:
        return self.truth.amax((1, 2, 3)) > 0.5


@dataclass(frozen=True)
class Predictions:
    """The last frame of every body, prompted by the frames before it and by points on itself."""

    by_memory: Prediction
    by_points: Prediction


def predict(
    segmenter: Sam2, batch: SyntheticBatch, generator: torch.Generator, predicted: float = 0.0
) -> Predictions:
    """Segment the last frame of every body; the points are drawn from ``generator``.

    ``predicted`` is the probability that, of several supports, the last is remembered with the
    mask predicted from the others, as in the volume pass, instead of its true mask.
    """
    images, masks = batch.images.to(segmenter.device), batch.masks.to(segmenter.device)
    count, frames = images.shape[:2]
    targets = masks.shape[1]
    pixels = (images.flatten(0, 1)[:, None] - segmenter.mean) / segmenter.std
    features = segmenter.features(pixels.contiguous(memory_format=torch.channels_last))
    body = torch.arange(count, device=images.device).repeat_interleave(targets) * frames
    prompts = masks.flatten(0, 1).float()
    memories = [
        segmenter.memory(features[body + frame], prompts[:, frame, None])
        for frame in range(frames - 1)
    ]
    if frames > 2 and torch.rand(1, generator=generator) < predicted:
        memories[-1] = _memory_of_prediction(segmenter, features[body + frames - 2], memories[:-1])
    query, truth = features[body + frames - 1], prompts[:, -1, None]
    decoded = segmenter.decode(query, memories)
    small = F.adaptive_avg_pool2d(truth, decoded[0].shape[-1])
    coordinates, labels = draw_points(truth[:, 0].cpu(), generator)
    pointed = segmenter.decode_points(
        query, coordinates.to(segmenter.device), labels.to(segmenter.device)
    )

    def prediction(logits: Tensor, iou: Tensor, object_score: Tensor) -> Prediction:
        return Prediction(logits.float(), iou.float(), object_score.float(), small)

    return Predictions(prediction(*decoded), prediction(*pointed))


def _memory_of_prediction(segmenter: Sam2, features: Features, memories: list[Memory]) -> Memory:
    with torch.no_grad():
        logits, _, object_score = segmenter.decode(features, memories)
        side = segmenter.image_size
        mask = F.interpolate(logits.float(), (side, side), mode="bilinear") > 0
        mask = mask & (object_score > 0)[..., None, None]
    return segmenter.memory(features, mask.float())


def total_loss(predictions: Predictions, config: DictConfig) -> Tensor:
    by_memory = loss_of(predictions.by_memory, config)
    return by_memory + config.loss.points * loss_of(predictions.by_points, config)


def loss_of(prediction: Prediction, config: DictConfig) -> Tensor:
    """Cross-entropy and soft Dice where the target is shown, and terms for the object score and the
    predicted IoU (0 where the target is absent), so that both tell whether it is.

    Where it is absent, a mask has little weight, because the object score already says so (Ravi et
    al., arXiv 2408.00714, section 4).
    """
    truth, probability = prediction.truth, prediction.logits.sigmoid()
    present = prediction.present.float()
    weight = config.loss
    share = torch.where(prediction.present, 1.0, weight.absent)
    crossed = F.binary_cross_entropy_with_logits(prediction.logits, truth, reduction="none")
    overlap = (probability * truth).sum((1, 2, 3))
    total = probability.sum((1, 2, 3)) + truth.sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    mask = weight.cross_entropy * crossed.mean((1, 2, 3)) + dice
    presence = F.binary_cross_entropy_with_logits(prediction.object_score[:, 0], present)
    foreground, true = prediction.logits > 0, truth > 0.5
    union = (foreground | true).sum((1, 2, 3))
    iou = present * (foreground & true).sum((1, 2, 3)) / union.clamp(min=1)
    return (
        (share * mask).sum() / share.sum()
        + weight.presence * presence
        + weight.iou * F.mse_loss(prediction.iou[:, 0], iou)
    )


JITTER = 0.1  # of the box's side, the deviation of each of its corners


def draw_points(masks: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """For each mask a box, or one to three points of which at most the last is background.

    ``masks`` ``[B, S, S]`` are foreground above 0, on the CPU as the generator; an empty one gets
    no point. Returns coordinates float32 ``[B, 3, 2]``, (x, y) in pixels, and labels int32
    ``[B, 3]``.
    """
    coordinates = torch.zeros(len(masks), 3, 2)
    labels = torch.full((len(masks), 3), NO_POINT, dtype=torch.int32)
    for row, mask in enumerate(masks):
        inside, outside = (mask > 0).nonzero(), (mask == 0).nonzero()  # (y, x)
        if len(inside) == 0:
            continue
        if torch.rand(1, generator=generator) < 0.5:
            low, high = inside.amin(0).float(), inside.amax(0).float() + 1
            noise = JITTER * torch.randn(2, 2, generator=generator)
            corners = torch.stack((low, high)) + noise * (high - low)
            coordinates[row, :2] = corners.flip(1)
            labels[row, :2] = torch.tensor([UPPER_LEFT, LOWER_RIGHT])
            continue
        foreground = int(torch.randint(1, 4, (1,), generator=generator))
        with_background = foreground < 3 and torch.rand(1, generator=generator) < 0.5
        kinds = [(inside, FOREGROUND)] * foreground + [(outside, BACKGROUND)] * bool(
            with_background and len(outside)
        )
        for point, (candidates, label) in enumerate(kinds):
            drawn = int(torch.randint(len(candidates), (1,), generator=generator))
            coordinates[row, point] = candidates[drawn].flip(0) + 0.5
            labels[row, point] = label
    return coordinates, labels
