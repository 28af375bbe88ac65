"""Linear layers cut to a rank by their singular vectors."""

from collections.abc import Sequence
from typing import final

from torch import nn

from prunus.lowrank.base import LowRank, alone
from prunus.lowrank.blocks import Block
from prunus.lowrank.layers import Layer
from prunus.lowrank.moments import Moments


@final
class Svd(LowRank):
    """Every linear layer becomes two: ``W ~ (U S^(1/2)) (S^(1/2) V^T)``; see ``LinearBlock``."""

    name = "svd"
    summary = "linear layers become two thin ones by SVD, weighed by their inputs if asked"
    kinds = (nn.Linear,)

    def blocks(
        self, network: nn.Module, layers: Sequence[Layer], moments: Moments
    ) -> tuple[Block, ...]:
        """Every layer for itself."""
        del network
        return alone(layers, moments)
