"""What a video model says of the frames it was asked about."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from fsmis.segmenters.logits import NO_OBJECT


@dataclass(frozen=True, eq=False)
class Answer:
    """Masks of R frames, indexable along R, and how sure the model is of them.

    Attributes:
        logits: float32 ``[R, H, W]``, foreground above 0 if the object is in the frame.
        object_score: float32 ``[R]``, above 0 where it is.
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
