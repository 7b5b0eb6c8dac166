"""PANet's classifier on frozen features."""

from torch import Tensor

from fsmis.features.prototypes import panet_logits
from fsmis.methods.frozen_prototypes import FrozenPrototypes


class PANetFrozen(FrozenPrototypes):
    """One prototype a class (Wang et al., PANet, ICCV 2019), see :class:`FrozenPrototypes`."""

    def logits(self, support: Tensor, foreground: Tensor, query: Tensor) -> Tensor:
        """See ``FrozenPrototypes.logits``."""
        return panet_logits(support, foreground, query)
