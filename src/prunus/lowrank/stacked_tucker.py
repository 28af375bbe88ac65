"""The linear layers of a transformer's stack, decomposed together with shared factors."""

from collections import defaultdict
from collections.abc import Sequence
from typing import final

from torch import nn

from prunus.graph.stacks import layer_stacks
from prunus.lowrank.base import LowRank, alone
from prunus.lowrank.blocks import Block
from prunus.lowrank.layers import Layer
from prunus.lowrank.moments import Moments
from prunus.lowrank.tensors import require_tensorly
from prunus.lowrank.tucker_blocks import StackBlock


@final
class StackedTucker(LowRank):
    """Layers of one shape share their outer factors over the whole depth; see ``StackBlock``.

    In a transformer's encoder these are three stacks: query, key, value and output of attention;
    the feed-forward's first layers; its second ones. Linear layers that are alone in their shape,
    or in no stack, are cut by SVD.
    """

    name = "stacked-tucker"
    summary = "a transformer's linear layers share Tucker factors over its depth (Ren et al. 2022)"
    kinds = (nn.Linear,)

    def require_packages(self) -> None:
        """Needs tensorly."""
        require_tensorly()

    def blocks(
        self, network: nn.Module, layers: Sequence[Layer], moments: Moments
    ) -> tuple[Block, ...]:
        """One for every shape in every stack, one for every other layer."""
        stacks = layer_stacks(network)
        grouped: dict[tuple[str, int, int], list[Layer]] = defaultdict(list)
        others: list[Layer] = []
        for layer in layers:
            inside = [s for s in stacks if layer.path.startswith(f"{s}.")]
            if inside:
                rows, columns = layer.weight.shape
                grouped[inside[0], rows, columns].append(layer)
            else:
                others.append(layer)
        others += [mine[0] for mine in grouped.values() if len(mine) == 1]
        shared = [tuple(mine) for mine in grouped.values() if len(mine) > 1]
        return (*(StackBlock(mine, moments) for mine in shared), *alone(others, moments))
