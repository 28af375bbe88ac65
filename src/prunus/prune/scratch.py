"""The small network trained from scratch: what all weights kept from the dense one must beat."""

from typing import final

import numpy as np

from prunus.method import Context, NoOptions
from prunus.prune.base import Ranked, UniformRanking


@final
class Scratch(UniformRanking[NoOptions]):
    """Every group narrowed by the same share, all weights drawn anew.

    Trained as long as the others, such a network is often as good as a pruned one (Liu et al.,
    "Rethinking the Value of Network Pruning", ICLR 2019, section 4). Which units stay is of no
    matter, as no weight does: the first ones.
    """

    name = "scratch"
    summary = "a uniformly narrower network with fresh weights (null baseline)"
    null = True
    reinitialize = True
    options_type = NoOptions

    def rank(self, context: Context) -> Ranked:
        """All units equal: of equal ones the first stay."""
        return Ranked({g.name: np.zeros(g.units) for g in context.trace.cuttable})
