"""Convolutions by Tucker-2, linear layers by SVD."""

from collections.abc import Sequence
from typing import final

from torch import nn

from prunus.lowrank.base import LowRank, alone
from prunus.lowrank.blocks import Block
from prunus.lowrank.layers import Layer
from prunus.lowrank.moments import Moments
from prunus.lowrank.tensors import require_tensorly
from prunus.lowrank.tucker_blocks import ConvBlock, is_convolution


@final
class Tucker(LowRank):
    """Every convolution becomes 1x1, a thinner kernel, 1x1; every linear layer becomes two.

    A Tucker-2 decomposition of one matrix is its SVD with a core between the factors that can be
    multiplied into one of them: the SVD gives the same matrix with fewer values, so it is taken.
    """

    name = "tucker"
    summary = "convolutions by Tucker-2 (Kim et al. 2016), linear layers by SVD"
    kinds = (nn.Conv2d, nn.Linear)

    def require_packages(self) -> None:
        """Needs tensorly."""
        require_tensorly()

    def blocks(
        self, network: nn.Module, layers: Sequence[Layer], moments: Moments
    ) -> tuple[Block, ...]:
        """Every layer for itself."""
        del network
        images = [layer for layer in layers if is_convolution(layer)]
        others = [layer for layer in layers if not is_convolution(layer)]
        return (*(ConvBlock((la,), moments) for la in images), *alone(others, moments))
