"""SAM2 prompted once with the support slice: what the paper's three stages add to."""

from fsmis.features.encoded_episode import support_of_each_slice
from fsmis.methods.prompted import PromptedMethod
from fsmis.prompting import single_support
from fsmis.protocol import Episode
from fsmis.segmenters.answer import Answer


class Sam2Single(PromptedMethod):
    """A video of two frames for each query slice: the support slice of its part, and itself.

    The same as ``AugmentMatchPrompt`` without copies, with one memory and no second pass.
    """

    def answer(self, episode: Episode) -> dict[str, Answer]:
        """See ``PromptedMethod.answer``."""
        self.matches = support_of_each_slice(episode)
        return single_support(self.segmenter, episode)
