"""What a video model says of the frames it was asked about."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import generate_binary_structure, label
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Answer:
    """Masks of R frames, indexable along R, and how sure the model is of them.

    Attributes:
        logits: float32 ``[R, H, W]``, foreground above 0 if the object is in the frame.
        object_score: float32 ``[R]``, above 0 where it is; minus infinity in frames that are
            excluded: nobody is to ask about them again.
        iou: float32 ``[R]`` in [0, 1], predicted overlap of the mask with the true one.
    """

    logits: np.ndarray
    object_score: np.ndarray
    iou: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Whether the object is in the frame, bool ``[R]``."""
        return self.object_score > 0

    @property
    def excluded(self) -> np.ndarray:
        """Frames that were ruled out, bool ``[R]``."""
        return np.isneginf(self.object_score)

    @property
    def masks(self) -> np.ndarray:
        """Bool ``[R, H, W]``, empty where the object is not in the frame."""
        return (self.logits > 0) & self.present[:, None, None]

    @property
    def gated(self) -> np.ndarray:
        """Logits as SAM2 gives them: its own "no object" in every pixel of a frame without."""
        return np.where(self.present[:, None, None], self.logits, np.float32(NO_OBJECT))

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: np.ndarray | slice | list[int]) -> Answer:
        return Answer(*(getattr(self, field.name)[rows] for field in fields(self)))

    def with_rows(self, rows: np.ndarray, other: Answer) -> Answer:
        """This answer with those rows taken from another, which holds no others."""
        new = {field.name: getattr(self, field.name).copy() for field in fields(self)}
        for name, values in new.items():
            values[rows] = getattr(other, name)
        return replace(self, **new)

    @staticmethod
    def cat(parts: list[Answer]) -> Answer:
        """Join answers along R."""
        return Answer(
            *(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Answer))
        )


NO_OBJECT = -1024.0  # SAM2's own logit for "the object is not in this frame"


def gated(mask: Tensor, object_score: Tensor) -> Tensor:
    """Mask logits ``[B, 1, h, w]``, nowhere an object where its score ``[B, 1]`` is 0 or less."""
    return torch.where(object_score[..., None, None] > 0, mask.float(), NO_OBJECT)


def resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits ``[B, 1, h, w]`` as ``[B, H, W]``."""
    return F.interpolate(mask, size, mode="bilinear", align_corners=False)[:, 0]


TOUCHING = generate_binary_structure(3, 3)  # voxels that share a corner: 26 neighbours


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest part of a mask bool ``[S, H, W]``; of equal ones the first, of none none.

    Slices that follow one another in the stack touch, even where the protocol leaves out slices
    between them: such a gap does not cut an organ in two.
    """
    parts, _ = label(mask, TOUCHING)
    sizes = np.bincount(parts.ravel(), minlength=1)
    sizes[0] = 0  # background
    return mask & (parts == sizes.argmax())
