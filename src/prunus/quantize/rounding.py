"""Weights of a network's linear layers, rounded for int8 by what the layers read."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunus.data import Inputs
from prunus.graph import Reader, watch, without_padding
from prunus.progress import Progress, Silent, counted
from prunus.quantize.gptq import gptq, nearest
from prunus.quantize.job import sole_layers, trial
from prunus.quantize.options import Deployment
from prunus.quantize.smoothed import read_by

WIDEST = 8192
"""Columns of a layer that is rounded so: its second moments are held and factorized in some five copies."""

_PASS_BYTES = 2**30
"""Most bytes of second moments at a time: what does not fit is measured in another pass."""

_HELD = 0.2  # of the inputs: what rounding is judged on
_HELD_ROWS = 512  # with as many, no more are held out of the batches to come


@dataclass
class _Moments:
    """Sum of ``x x^T`` over most inputs of a layer, padding left out; some rows that have no part in it."""

    layer: nn.Linear
    sums: Tensor
    draw: torch.Generator
    count: int = 0
    held: list[Tensor] = field(default_factory=list)

    def see(self, given: Tensor, mask: Tensor | None) -> None:
        """Take more inputs in."""
        flat = read_by(self.layer, without_padding(given, mask))
        flat = flat.reshape(-1, self.layer.in_features).float()
        is_held = torch.rand(len(flat), generator=self.draw) < _HELD
        if sum(map(len, self.held)) >= _HELD_ROWS:
            is_held[:] = False
        self.held.append(flat[is_held])
        fit = flat[~is_held]
        self.sums.addmm_(fit.T, fit)
        self.count += len(fit)


def rounded(
    network: nn.Module,
    deployment: Deployment,
    batches: Sequence[Inputs],
    levels: int,
    progress: Progress | None = None,
) -> tuple[nn.Module, int]:
    """A copy whose int8 layers have weights that an engine rounds to themselves.

    A layer is left to the engine where it reads fewer inputs than it has columns or is wider than
    ``WIDEST``, where another module has its weights or a name of it is excluded, and where inputs that
    had no part in the rounding say that the nearest levels are as good: few inputs can be fitted.

    Args:
        network: Not touched.
        deployment: Tells which layers are quantized.
        batches: Real batches.
        levels: Of the engine's weights, on either side of zero.
        progress: A step a batch of each pass, and a step a layer.

    Returns:
        The copy, and how many layers were rounded; the network itself and 0 where none was.
    """
    own = trial(network)
    counts = _counts(own, deployment, batches)
    layers = [la for la, count in counts.items() if la.in_features <= min(count, WIDEST)]
    draw = torch.Generator().manual_seed(0)
    done: dict[nn.Module, nn.Parameter] = {}
    passes = list(_passes(layers))
    told = progress or Silent()
    told.start("fit weights", len(passes) * len(batches) + len(layers))
    for together in passes:
        found = {la: _Moments(la, torch.zeros([la.in_features] * 2), draw) for la in together}
        watch(own, {layer: one.see for layer, one in found.items()}, counted(batches, told))
        for layer, one in counted(found.items(), told):
            weight = _better(one, levels)
            if weight is not None:
                done[layer] = layer.weight = nn.Parameter(weight)
    told.finish()
    if not done:
        return network, 0
    written = copy.deepcopy(network).cpu()
    for path, layer in own.named_modules():
        if layer in done:
            written.get_submodule(path).register_parameter("weight", done[layer])
    return written, len(done)


def _counts(
    network: nn.Module, deployment: Deployment, batches: Sequence[Inputs]
) -> dict[nn.Linear, int]:
    """How many inputs each layer reads: moments of a wide layer that reads few are not worth a byte."""
    counts = dict.fromkeys(sole_layers(network, deployment), 0)

    def counting(layer: nn.Linear) -> Reader:
        def see(given: Tensor, mask: Tensor | None) -> None:
            counts[layer] += without_padding(given, mask).numel() // layer.in_features

        return see

    watch(network, {layer: counting(layer) for layer in counts}, batches)
    return counts


def _better(one: _Moments, levels: int) -> Tensor | None:
    """Rounded weights, if they leave less error than the nearest on the rows that were held out."""
    weight = one.layer.weight.detach()
    held = torch.cat(one.held)
    if one.count < one.layer.in_features or not len(held):
        return None
    found = gptq(weight, one.sums, levels)
    if found is None:
        return None
    errors = [
        float((held @ (other - weight).T).square().sum())
        for other in (found, nearest(weight, levels))
    ]
    return found if errors[0] < errors[1] else None


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
