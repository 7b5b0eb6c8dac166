"""The paper's method: augment the support, match each query slice, prompt SAM2 with the match.

Zu et al., "Rethinking Few-Shot Medical Image Segmentation by SAM2: A Training-Free Framework with
Augmentative Prompting and Dynamic Matching", arXiv 2503.04826.
"""

import numpy as np

from fsmis.matchers.base import Matcher
from fsmis.matching import match
from fsmis.methods.base import Match, Method
from fsmis.prompting import Prompts, segment_prompted
from fsmis.protocol import Episode
from fsmis.segmenters.sam2 import Features, Sam2
from fsmis.support_set import SupportSet, SupportSetConstruction


class AugmentMatchPrompt(Method):
    """The three stages, organs and slices sharing what they have in common.

    One support set for every distinct support slice, one encoder pass for every distinct query
    slice and matched copy, one memory for every (matched copy, organ).

    Args:
        support_set: stage 1.
        matcher: stage 2.
        segmenter: stage 3.
        memories: matched copies that prompt each query slice together (the paper: 1).
    """

    def __init__(
        self,
        support_set: SupportSetConstruction,
        matcher: Matcher,
        segmenter: Sam2,
        memories: int,
    ):
        self.support_set = support_set
        self.matcher = matcher
        self.segmenter = segmenter
        self.memories = memories
        self.matches: dict[str, list[Match]] = {}

    def segment(self, episode: Episode) -> dict[str, np.ndarray]:
        slices = np.unique(np.concatenate([t.query_slices for t in episode.organs.values()]))
        query_images = episode.query.image[slices]
        queries = self.segmenter.encode(query_images)
        row_of = {int(z): row for row, z in enumerate(slices)}

        copies: list[Features] = []  # of matched copies alone
        copy_of: dict[tuple[int, int], np.ndarray] = {}  # (support, query slice) -> copies [k]
        images: list[np.ndarray] = []
        masks: list[dict[str, np.ndarray]] = []
        for z, served in _served_slices(episode).items():
            support = self._construct(episode, z, len(served))
            rows = [row_of[query] for query in served]
            nearest, features = self._match(query_images[rows], queries[rows], support)
            used, compact = np.unique(nearest, return_inverse=True)
            for query, chosen in zip(served, compact.reshape(nearest.shape), strict=True):
                copy_of[z, query] = len(images) + chosen
            images += [support.images[copy] for copy in used]
            masks += [{o: m[copy] for o, m in support.masks.items()} for copy in used]
            copies.append(
                features[used] if features else self.segmenter.encode(support.images[used])
            )

        memory_of: dict[tuple[int, str], int] = {}  # (copy, organ) -> memory
        row_query, row_memory = [], []
        for organ, task in episode.organs.items():
            for query, z in zip(task.query_slices, task.support_slices[task.part], strict=True):
                chosen = [(int(copy), organ) for copy in copy_of[int(z), int(query)]]
                row_memory.append([memory_of.setdefault(c, len(memory_of)) for c in chosen])
                row_query.append(row_of[int(query)])
        prompts = Prompts(
            memory_copy=np.array([copy for copy, _ in memory_of]),
            memory_mask=np.stack([masks[copy][organ] for copy, organ in memory_of]),
            row_query=np.array(row_query),
            row_memory=np.array(row_memory),
        )
        logits = segment_prompted(self.segmenter, queries, Features.cat(copies), prompts)

        ends = np.cumsum([len(task.query_slices) for task in episode.organs.values()])[:-1]
        by_organ = dict(zip(episode.organs, np.split(np.arange(len(logits)), ends), strict=True))
        keys = list(memory_of)
        self.matches = {
            organ: [
                Match(images[keys[m][0]], masks[keys[m][0]][organ])
                for m in prompts.row_memory[rows, -1]
            ]
            for organ, rows in by_organ.items()
        }
        return {organ: logits[rows] > 0 for organ, rows in by_organ.items()}

    def _construct(self, episode: Episode, z: int, n_query: int) -> SupportSet:
        """Stage 1 for one support slice, with the masks of all organs that use it."""
        masks = {
            organ: task.support_masks[part]
            for organ, task in episode.organs.items()
            for part, support_z in enumerate(task.support_slices)
            if support_z == z
        }
        key = f"{episode.dataset}/{episode.support.id}/{z}"
        return self.support_set.construct(episode.support.image[z], masks, n_query, key)

    def _match(
        self, query_images: np.ndarray, queries: Features, support: SupportSet
    ) -> tuple[np.ndarray, Features | None]:
        """Stage 2: copies int [S, k], nearest last, and all copies' features if it needed them."""
        if self.matcher.on_features:
            features = self.segmenter.encode(support.images)
            return match(self.matcher, queries, features, self.memories), features
        return match(self.matcher, query_images, support.images, self.memories), None


def _served_slices(episode: Episode) -> dict[int, list[int]]:
    """Support slice -> the query slices it serves, for any organ; both ascending."""
    served: dict[int, set[int]] = {}
    for task in episode.organs.values():
        for query, z in zip(task.query_slices, task.support_slices[task.part], strict=True):
            served.setdefault(int(z), set()).add(int(query))
    return {z: sorted(served[z]) for z in sorted(served)}
