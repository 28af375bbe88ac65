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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunus.data import Inputs
from prunus.graph import Reader, call, output_tensors, watch
from prunus.progress import Progress, Silent, counted
from prunus.quantize.gptq import nearest
from prunus.quantize.job import sole_layers, trial
from prunus.quantize.options import Deployment
from prunus.quantize.smoothed import smooth_

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""alpha of eq. 4: how much of the outliers goes into the weights."""

WORTH = 0.5
"""Most that may be left of the error of a layer's outputs, for a multiplication of its inputs."""

_FINER = 3
"""Times the levels that weights are rounded to while strengths are compared: what makes up for errors of
rounding (``gptq``) leaves a part of them, and outliers may then go further into the weights."""

_LEAST_OUTPUTS = 8  # of all that read a tensor: for fewer, factors weigh much beside int8 weights
_ROWS = 512  # of a layer's inputs, that errors are measured on
_STEPS = 255
_SMALLEST, _LARGEST = -12, 2  # as powers of 2, all of which float16 holds
"""Columns that are large are made small; what is small on the samples may be large on other inputs, and
is made larger by no more than this."""
_SAME = 1e-3  # of the largest number of an output: what is left is the order of sums


@dataclass
class _Inputs:
    """What linear layers read of one tensor: the range of each column, and some rows."""

    layers: tuple[nn.Linear, ...]
    share: int
    draw: torch.Generator
    least: Tensor | None = None
    most: Tensor | None = None
    rows: list[Tensor] = field(default_factory=list)

    def see(self, x: Tensor, _: Tensor | None) -> None:
        """Take more inputs in, padding too: it has a part in an engine's ranges."""
        flat = x.reshape(-1, x.shape[-1]).float()
        low, high = flat.amin(dim=0), flat.amax(dim=0)
        self.least = low if self.least is None else torch.minimum(self.least, low)
        self.most = high if self.most is None else torch.maximum(self.most, high)
        drawn = torch.randperm(len(flat), generator=self.draw)[: self.share]
        self.rows.append(flat[drawn])


def smoothed(
    network: nn.Module,
    deployment: Deployment,
    batches: Sequence[Inputs],
    levels: int,
    progress: Progress | None = None,
) -> tuple[nn.Module, int]:
    """A copy whose layers read smoothed inputs where that at least halves their error.

    Args:
        network: Not touched.
        deployment: Tells which layers are quantized.
        batches: Real batches.
        levels: Of weights, on either side of zero.
        progress: A step a batch, then a step for the layers that read one tensor.

    Returns:
        The copy, and how many layers were changed. The network itself and 0 where none gains, or where
        something reads weights past their layers, so that the copy would say something else.
    """
    own = trial(network)
    before = output_tensors(call(own, batches[0]))
    share, draw = math.ceil(_ROWS / len(batches)), torch.Generator().manual_seed(0)
    found = [_Inputs(layers, share, draw) for layers in _readers(own, deployment, batches[0])]
    told = progress or Silent()
    told.start("move outliers", len(batches) + len(found))
    watch(own, {one.layers[0]: one.see for one in found}, counted(batches, told))
    done: dict[nn.Module, Tensor] = {}
    for one in counted(found, told):
        factors = _factors(one, levels)
        if factors is not None:
            done |= dict.fromkeys(one.layers, factors)
    told.finish()
    if not done:
        return network, 0
    written = copy.deepcopy(network).cpu()
    for path, layer in list(own.named_modules()):
        if layer in done:
            smooth_(layer, done[layer])
            smooth_(written.get_submodule(path), done[layer])
    if not _are_same(before, output_tensors(call(own, batches[0]))):
        return network, 0
    return written, len(done)


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
        factors[alive] = (logs.mean() - logs).round().clamp(_SMALLEST, _LARGEST).exp2()
        return factors

    found = {strength: of(strength) for strength in STRENGTHS}
    errors = {strength: error(factors) for strength, factors in found.items()}
    best = min(errors, key=errors.__getitem__)
    is_worth_it = errors[best] < WORTH * error(torch.ones_like(sizes))  # not of 0, infinity or NaN
    return found[best] if is_worth_it else None


def _are_same(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether a network says what it said, in all that it returns."""
    return len(before) == len(after) and all(
        a.shape == b.shape and (not a.numel() or bool((a - b).abs().max() <= _SAME * b.abs().max()))
        for a, b in zip(after, before, strict=True)
        if b.is_floating_point()
    )
