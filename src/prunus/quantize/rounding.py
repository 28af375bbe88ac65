"""Weights of a network's linear layers, rounded for int8 by what the layers read."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.data import Inputs
from prunus.graph import watch, without_padding
from prunus.quantize.gptq import gptq
from prunus.quantize.job import sole_layers
from prunus.quantize.options import Deployment
from prunus.quantize.smoothed import read_by

_PASS_BYTES = 2**30
"""Most bytes of second moments at a time: what does not fit is measured in another pass."""


@dataclass
class _Moments:
    """Sum of ``x x^T`` over the inputs of a layer, padding left out, and how many there were."""

    layer: nn.Module
    sums: Tensor
    count: int = 0

    def see(self, given: Tensor, mask: Tensor | None) -> None:
        """Take more inputs in."""
        flat = (
            read_by(self.layer, without_padding(given, mask)).reshape(-1, given.shape[-1]).float()
        )
        self.sums.addmm_(flat.T, flat)
        self.count += len(flat)


def rounded(
    network: nn.Module, deployment: Deployment, batches: Sequence[Inputs], levels: int
) -> tuple[nn.Module, int]:
    """A copy whose int8 layers have weights that an engine rounds to themselves.

    A layer that reads fewer inputs than it has columns is left to the engine: they do not tell how its
    errors could make up for each other. So is one whose weights another module has, too.

    Args:
        network: Not touched.
        deployment: Tells which layers are quantized.
        batches: Real batches.
        levels: Of the engine's weights, on either side of zero.

    Returns:
        The copy, and how many layers were rounded.
    """
    own = copy.deepcopy(network).cpu().eval()
    count = 0
    for layers in _passes(sole_layers(own, deployment)):
        found = {la: _Moments(la, torch.zeros([la.in_features] * 2)) for la in layers}
        watch(own, {layer: one.see for layer, one in found.items()}, batches)
        for layer, one in found.items():
            if one.count >= layer.in_features:
                layer.weight = nn.Parameter(gptq(layer.weight.detach(), one.sums, levels))
                count += 1
    return own, count


def _passes(layers: Sequence[nn.Linear]) -> Iterator[list[nn.Linear]]:
    """Layers whose moments fit beside each other."""
    now: list[nn.Linear] = []
    size = 0
    for layer in layers:
        own = 4 * layer.in_features**2
        if now and size + own > _PASS_BYTES:
            yield now
            now, size = [], 0
        now.append(layer)
        size += own
    if now:
        yield now
