"""Volume as video, in both directions: confident slices of the query prompt their neighbours."""

from collections.abc import Mapping

import numpy as np

from fsmis.data.protocol import OrganTask
from fsmis.errors import UserError
from fsmis.pipeline.prompting import Prompts, Segment
from fsmis.segmenters.base import Answer


class VolumePass:
    """Second pass through the query volume; UserError for a setting out of its range.

    After the first pass, the mask of a confident query slice becomes a memory of the same organ for
    the slices around it. All slices take this step at once, so errors do not travel along the
    volume as they do when slice follows slice.

    Args:
        reach: slices up and down whose masks prompt a slice; 0 turns the pass off.
        confidence: least mean probability of a mask's pixels to become a memory.
    """

    def __init__(self, reach: int, confidence: float):
        if not isinstance(reach, int) or reach < 0:
            raise UserError(f"method.volume_pass.reach={reach}: must be a whole number, 0 or more")
        if not 0 <= confidence < 1:
            raise UserError(f"method.volume_pass.confidence={confidence}: must be in [0, 1)")
        self.reach = reach
        self.confidence = confidence

    def confident(self, answer: Answer) -> np.ndarray:
        """Which masks become memories: bool ``[R]``; empty ones never."""
        return answer.certainty > self.confidence

    def refine(
        self,
        answer: Answer,
        organs: Mapping[str, OrganTask],
        first: Prompts,
        segment: Segment,
    ) -> Answer:
        """The answer after the second pass; unchanged for rows without a confident neighbour.

        Args:
            answer: of the first pass, R rows; the query slices of ``organs``, in order.
            segment: answers prompts; to it, copies and query slices are one set of images.
        """
        if not self.reach:
            return answer
        slices = [(organ, int(z)) for organ, task in organs.items() for z in task.query_slices]
        rows, second = self.prompts(answer, slices, first)
        return answer.with_rows(rows, segment(second)) if len(rows) else answer

    def prompts(
        self, answer: Answer, slices: list[tuple[str, int]], first: Prompts
    ) -> tuple[np.ndarray, Prompts]:
        """Rows with a confident neighbour, int ``[Q]``, and their prompts in the second pass.

        These are the memories of the first pass, then the neighbours, the nearest last. ``slices``
        holds organ and slice position of each of the R rows of ``answer``.
        """
        known = np.flatnonzero(self.confident(answer))
        memory_of = {slices[row]: len(first.memory_copy) + new for new, row in enumerate(known)}
        steps = [step for away in range(self.reach, 0, -1) for step in (-away, away)]
        neighbours = np.array(
            [[memory_of.get((organ, z + step), -1) for step in steps] for organ, z in slices]
        )
        neighbours[answer.excluded] = -1
        rows = np.flatnonzero((neighbours >= 0).any(axis=1))
        return rows, Prompts(
            memory_copy=np.concatenate([first.memory_copy, first.row_query[known]]),
            memory_mask=first.memory_mask,
            row_query=first.row_query[rows],
            row_memory=np.hstack([first.row_memory, neighbours])[rows],
            predicted_mask=answer.masks[known],
            size=first.size,
        )
