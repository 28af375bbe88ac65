"""Outliers moved from the inputs of linear layers into their weights, where rounding has room for them.

A range of 8 bits for all inputs of a layer is set by a few large columns. Columns are divided by factors
and the weights' columns multiplied by them: the same products, of flatter inputs.

References:
    Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models", ICML 2023, eq. 3 and 4 (https://arxiv.org/abs/2211.10438). There one strength is tuned for a
    network, here one for each layer, by the error of its outputs.
"""

import copy
import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunus.data import Inputs
from prunus.graph import Reader, watch
from prunus.meter import as_predictor
from prunus.quantize.gptq import nearest
from prunus.quantize.job import sole_layers
from prunus.quantize.options import Deployment
from prunus.quantize.smoothed import smooth_

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""alpha of eq. 4: how much of the outliers goes into the weights."""

WORTH = 0.5
"""Of the error of a layer's outputs: a layer with more left stays as it is, and needs no multiplication."""

_FINER = 3
"""Times the levels that weights are rounded to while strengths are compared: what makes up for errors of
rounding (``gptq``) leaves about a third of them, and outliers may then go further into the weights."""

_LEAST_OUTPUTS = (
    8  # of all that read a tensor: for fewer, factors weigh as much as the int8 weights
)
_ROWS = 512  # of a layer's inputs, that errors are measured on
_STEPS = 255
_MOST = 12  # powers of 2 that a factor may be from 1: float16 holds them all
_SAME = 1e-3  # of the largest logit: factors are powers of 2, what is left is the order of sums


@dataclass
class _Inputs:
    """What linear layers read of one tensor: the range of each column, and some rows."""

    layers: tuple[nn.Linear, ...]
    share: int
    least: Tensor | None = None
    most: Tensor | None = None
    rows: list[Tensor] = field(default_factory=list)

    def see(self, x: Tensor, _: Tensor | None) -> None:
        """Take more inputs in, padding too: it has a part in an engine's ranges."""
        flat = x.reshape(-1, x.shape[-1]).float()
        low, high = flat.amin(dim=0), flat.amax(dim=0)
        self.least = low if self.least is None else torch.minimum(self.least, low)
        self.most = high if self.most is None else torch.maximum(self.most, high)
        self.rows.append(flat[:: math.ceil(len(flat) / self.share)].clone())


def smoothed(
    network: nn.Module, deployment: Deployment, batches: Sequence[Inputs], levels: int
) -> tuple[nn.Module, int]:
    """A copy whose layers read smoothed inputs where that at least halves their error.

    Args:
        network: Not touched.
        deployment: Tells which layers are quantized.
        batches: Real batches.
        levels: Of weights, on either side of zero.

    Returns:
        The copy, and how many layers were changed. The network itself and 0 where none gains, or where
        something reads weights past their layers, so that the copy would say something else.
    """
    own = copy.deepcopy(network).cpu().eval()
    before = as_predictor(own)(batches[0])
    share = math.ceil(_ROWS / len(batches))
    found = [_Inputs(layers, share) for layers in _readers(own, deployment, batches[0])]
    watch(own, {one.layers[0]: one.see for one in found}, batches)
    count = 0
    for one in found:
        factors = _factors(one, levels)
        if factors is not None:
            for layer in one.layers:
                smooth_(layer, factors)
                count += 1
    if not count or not _are_same(before, as_predictor(own)(batches[0])):
        return network, 0
    return own, count


def _readers(
    network: nn.Module, deployment: Deployment, batch: Inputs
) -> list[tuple[nn.Linear, ...]]:
    """Layers that read the same tensor, each of them once, with weights that no other module has."""
    layers = sole_layers(network, deployment)
    calls: dict[nn.Module, int] = dict.fromkeys(layers, 0)
    tensors: list[tuple[Callable[[], Tensor | None], list[nn.Linear]]] = []

    def note(layer: nn.Linear) -> Reader:
        def see(x: Tensor, _: Tensor | None) -> None:
            calls[layer] += 1
            same = next((readers for tensor, readers in tensors if tensor() is x), None)
            if same is None:
                tensors.append((weakref.ref(x), same := []))
            same.append(layer)

        return see

    watch(network, {layer: note(layer) for layer in layers}, [batch])
    fit = {layer for layer in layers if calls[layer] == 1}
    kept = (tuple(layer for layer in readers if layer in fit) for _, readers in tensors)
    return [layers for layers in kept if sum(x.out_features for x in layers) >= _LEAST_OUTPUTS]


def _factors(one: _Inputs, levels: int) -> Tensor | None:
    """Factors ``[in]`` of the inputs that make the error least, if they are worth it; eq. 4."""
    low, high = one.least, one.most
    if low is None or high is None:
        return None
    rows, weight = torch.cat(one.rows), torch.cat([layer.weight.detach() for layer in one.layers])
    sizes = torch.maximum(low.abs(), high.abs())
    heights = weight.abs().amax(dim=0)
    alive = (sizes > 0) & (heights > 0)
    if not bool(alive.any()) or not bool(torch.isfinite(sizes).all()):
        return None
    exact = rows @ weight.T

    def error(factors: Tensor) -> float:  # of the outputs, summed squares
        least, most = (low * factors).amin(), (high * factors).amax()
        step = (most.clamp(min=0) - least.clamp(max=0)) / _STEPS
        read = (rows * factors / step).round() * step
        return float((read @ nearest(weight / factors, _FINER * levels).T - exact).square().sum())

    def of(strength: float) -> Tensor:
        logs = strength * sizes[alive].log2() - (1 - strength) * heights[alive].log2()
        factors = torch.ones_like(sizes)
        factors[alive] = (logs.mean() - logs).round().clamp(-_MOST, _MOST).exp2()
        return factors

    found = {strength: of(strength) for strength in STRENGTHS}
    errors = {strength: error(factors) for strength, factors in found.items()}
    best = min(errors, key=errors.__getitem__)
    return found[best] if errors[best] <= WORTH * error(torch.ones_like(sizes)) else None


def _are_same(before: Iterable[Tensor], after: Iterable[Tensor]) -> bool:
    return all(
        bool((a - b).abs().max() <= _SAME * b.abs().max())
        for a, b in zip(after, before, strict=True)
    )
