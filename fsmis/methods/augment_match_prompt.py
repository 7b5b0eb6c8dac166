"""The paper's method: augment the support, match each query slice, prompt SAM2 with the match.

Zu et al., "Rethinking Few-Shot Medical Image Segmentation by SAM2: A Training-Free Framework with
Augmentative Prompting and Dynamic Matching", arXiv 2503.04826.
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from fsmis.data.protocol import Episode, served_slices
from fsmis.errors import UserError
from fsmis.methods.prompted import PromptedMethod
from fsmis.pipeline import Match
from fsmis.pipeline.alignment import ScaleSearch
from fsmis.pipeline.extent import Extent
from fsmis.pipeline.masks import Borders, Greys
from fsmis.pipeline.matching import Matcher, match
from fsmis.pipeline.prompting import (
    Prompts,
    Segment,
    VolumePass,
    by_organ,
    mirror,
    segment_prompted,
    with_flip,
)
from fsmis.pipeline.support_set import SupportSet, SupportSetConstruction
from fsmis.pipeline.zoom import Zoom
from fsmis.segmenters import Answer, Segmenter
from fsmis.segmenters.features import Features


@dataclass
class MatchedCopies:
    """The copies that some query slice matched, C of them, from all support slices.

    Attributes:
        images: float32 [H, W], C of them.
        masks: organ -> bool [H, W], C of them.
        features: parts that join to the features of the C copies.
        nearest: (support slice, query slice) -> copies int [k], nearest last.
    """

    images: list[np.ndarray] = field(default_factory=list)
    masks: list[dict[str, np.ndarray]] = field(default_factory=list)
    features: list[Features] = field(default_factory=list)
    nearest: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)


class AugmentMatchPrompt(PromptedMethod):
    """The three stages, organs and slices sharing what they have in common.

    One support set for every distinct support slice, one encoder pass for every distinct query
    slice and matched copy, one memory for every (matched copy, organ). Where a second support slice
    serves a query slice too, its nearest copy is one memory more.

    Args:
        support_set: stage 1.
        matcher: stage 2.
        segmenter: stage 3.
        memories: matched copies that prompt each query slice together, all where a support set
            has fewer (the paper: 1).
        flip: average the logits with those of the mirrored slices and copies.
        volume_pass: second pass through the query volume.
        scale, extent, zoom, largest_component, non_overlap, narrowest, greys, borders: see
            :class:`PromptedMethod`.

    Raises:
        UserError: ``memories`` is not a count.
    """

    def __init__(
        self,
        support_set: SupportSetConstruction,
        matcher: Matcher,
        segmenter: Segmenter,
        memories: int,
        flip: bool,
        volume_pass: VolumePass,
        scale: ScaleSearch,
        extent: Extent,
        zoom: Zoom,
        largest_component: bool,
        non_overlap: bool,
        narrowest: float,
        greys: Greys,
        borders: Borders,
    ):
        super().__init__(
            segmenter,
            scale,
            extent,
            zoom,
            largest_component,
            non_overlap,
            narrowest,
            greys,
            borders,
        )
        if not isinstance(memories, int) or memories < 1:
            raise UserError(f"method.memories={memories}: must be a whole number, 1 or more")
        self.support_set = support_set
        self.matcher = matcher
        self.memories = memories
        self.flip = flip
        self.volume_pass = volume_pass

    def answer(self, episode: Episode) -> dict[str, Answer]:
        """See ``PromptedMethod.answer``."""
        slices = episode.query_slices
        query_images = episode.query.image[slices]
        queries = self.segmenter.encode(query_images)
        copies = self._match_slices(episode, slices, queries)
        prompts = _prompts(episode, slices, copies)
        features = Features.cat([*copies.features, queries])
        segment = self._segment_with(copies, query_images, features)
        answer = self.within_extent(episode, segment(prompts), features, prompts)
        answer = self.volume_pass.refine(answer, episode.organs, prompts, segment)

        self.matches, first = {}, 0
        for organ, task in episode.organs.items():
            rows = slice(first, first + len(task.query_slices))
            nearest = prompts.memory_copy[prompts.row_memory[rows, -1]]
            together = (prompts.row_memory[rows] >= 0).sum(axis=1)
            self.matches[organ] = [
                Match(copies.images[copy], copies.masks[copy][organ], int(of))
                for copy, of in zip(nearest, together, strict=True)
            ]
            first = rows.stop
        return by_organ(episode, answer)

    def _segment_with(
        self, copies: MatchedCopies, query_images: np.ndarray, features: Features
    ) -> Segment:
        """Stage 3 on copies and query slices as one set of images, in the one view or in both."""
        upright = partial(segment_prompted, self.segmenter, features, features)
        if not self.flip:
            return upright
        views = (mirror(np.stack(copies.images)), mirror(query_images))
        mirrored = Features.cat([self.segmenter.encode(view) for view in views])
        return with_flip(upright, partial(segment_prompted, self.segmenter, mirrored, mirrored))

    def _match_slices(
        self, episode: Episode, slices: np.ndarray, queries: Features
    ) -> MatchedCopies:
        """Stages 1 and 2, a support slice at a time, with the query slices it serves."""
        copies = MatchedCopies()
        for z, served in served_slices(episode).items():
            support = self._construct(episode, z, len(served))
            rows = np.searchsorted(slices, served)
            k = min(self.memories, len(support.images))
            if self.matcher.on_features:
                encoded = self.segmenter.encode(support.images)
                nearest = match(self.matcher, queries[rows], encoded, k)
            else:
                images = episode.query.image[served]
                nearest = match(self.matcher, images, support.images, k)
            used = np.unique(nearest)
            indices = len(copies.images) + np.searchsorted(used, nearest)
            copies.nearest |= {(z, query): row for query, row in zip(served, indices, strict=True)}
            copies.images += [support.images[copy] for copy in used]
            copies.masks += [{o: m[copy] for o, m in support.masks.items()} for copy in used]
            copies.features.append(
                encoded[used]
                if self.matcher.on_features
                else self.segmenter.encode(support.images[used])
            )
        return copies

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


def _prompts(episode: Episode, slices: np.ndarray, copies: MatchedCopies) -> Prompts:
    """One row for each query slice of each organ, in the order of the episode.

    Its images are the copies, then the query slices.
    """
    memory_of: dict[tuple[int, str], int] = {}  # (copy, organ) -> memory
    row_query, row_memory = [], []
    for organ, task in episode.organs.items():
        for query, supports in zip(task.query_slices, task.serving(), strict=True):
            *beside, nearest = (copies.nearest[z, int(query)] for z in supports)
            together = [*(others[-1] for others in beside), *nearest]
            memories = [memory_of.setdefault((int(c), organ), len(memory_of)) for c in together]
            row_query.append(len(copies.images) + np.searchsorted(slices, query))
            row_memory.append(memories)
    most = max(map(len, row_memory))
    return Prompts(
        memory_copy=np.array([copy for copy, _ in memory_of]),
        memory_mask=np.stack([copies.masks[copy][organ] for copy, organ in memory_of]),
        row_query=np.array(row_query),
        row_memory=np.array([[-1] * (most - len(memories)) + memories for memories in row_memory]),
        size=episode.query.image.shape[1:],
    )
