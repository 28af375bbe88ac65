"""Batch norm folded into the layer before it: one pass over the activations less.

In evaluation ``BN(Wx + b) = (g / s) W x + (g / s) (b - m) + B`` with ``s = sqrt(var + eps)``, scale
``g``, shift ``B`` and mean ``m``: the layer with other numbers (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, eq. 14).
Which batch norm follows which layer, and reads nothing else, is watched in one forward pass and then
tried: only pairs that leave the outputs as they are count.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.candidates.skeleton import Skeleton
from prunus.graph import Inputs
from prunus.graph.difference import relative_difference
from prunus.graph.inputs import call
from prunus.train.forward import modes_restored

SAME = 1e-4
"""Relative difference of outputs, float32: what rounding may do and a wrong pair never stays under."""


@dataclass(frozen=True)
class Pair:
    """A layer and the batch norm that alone reads its output, by their module paths."""

    layer: str
    norm: str


def find_pairs(network: nn.Module, inputs: Inputs) -> tuple[Pair, ...]:
    """Batch norms that can be folded.

    Args:
        network: Run in evaluation mode; not changed.
        inputs: A real batch; two samples do.
    """
    with modes_restored(network):
        network.eval()
        pairs = _watch(network, inputs)
    if _agree(network, pairs, inputs):
        return tuple(pairs)
    return tuple(pair for pair in pairs if _agree(network, [pair], inputs))


def unchanged_by(network: nn.Module, inputs: Inputs, change: Callable[[Skeleton], None]) -> bool:
    """Whether a change leaves the outputs as they are, whatever the batch norms hold.

    Candidates have statistics of their own, and a fresh batch norm folds into any layer.
    """
    skeleton = Skeleton(network)
    _shake(skeleton)
    reference = call(skeleton.module, inputs)
    change(skeleton)
    return relative_difference(reference, call(skeleton.module, inputs)) <= SAME


def fold_(skeleton: Skeleton, pairs: Iterable[Pair]) -> None:
    """Fold batch norms, in their present statistics, until the next plan is loaded."""
    for pair in pairs:
        layer, norm = skeleton.submodule(pair.layer), skeleton.submodule(pair.norm)
        factor, bias = factors(layer, norm)
        weight: Any = layer.weight
        shape = [len(factor)] + [1] * (weight.dim() - 1)
        skeleton.replace(pair.layer, weight * factor.reshape(shape), bias)
        skeleton.bypass(pair.norm)


def factors(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """What a batch norm makes of the layer before it: a factor of each output's weights, and the bias."""
    scale: Tensor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    mean = norm.running_mean if layer.bias is None else norm.running_mean - layer.bias
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return scale, shift


def _watch(network: nn.Module, inputs: Inputs) -> list[Pair]:
    """Batch norms whose input is the very tensor that a layer returned; both called once."""
    made: dict[int, tuple[str, Tensor]] = {}
    calls: dict[str, int] = {}
    pairs: list[Pair] = []

    def after(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(module, _BatchNorm):
                maker = made.get(id(given[0])) if given else None
                if maker is not None and module.running_mean is not None:
                    pairs.append(Pair(maker[0], name))
            elif isinstance(out, Tensor):
                made[id(out)] = (name, out)

        return hook

    foldable = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    handles = [
        module.register_forward_hook(after(name))
        for name, module in network.named_modules()
        if isinstance(module, (*foldable, _BatchNorm))
    ]
    try:
        call(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    own = _own_parameters(network)
    return [
        pair
        for pair in pairs
        if calls[pair.layer] == calls[pair.norm] == 1
        and (weight := own.get(f"{pair.layer}.weight")) is not None
        and len(weight) == network.get_submodule(pair.norm).num_features
    ]


def _own_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are stored under one name alone; none that is computed from others."""
    named = list(network.named_parameters(remove_duplicate=False))
    times = Counter(id(parameter) for _, parameter in named)
    return {name: parameter for name, parameter in named if times[id(parameter)] == 1}


def _agree(network: nn.Module, pairs: list[Pair], inputs: Inputs) -> bool:
    return unchanged_by(network, inputs, lambda skeleton: fold_(skeleton, pairs))


def _shake(skeleton: Skeleton) -> None:
    """Move what every batch norm holds, by no more than the size of what it normalizes."""
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor) -> Tensor:
        return (2 * torch.rand(like.shape, generator=generator) - 1).to(like)

    for name in skeleton.norms:
        norm: Any = skeleton.submodule(name)
        mean, var = norm.running_mean, norm.running_var
        skeleton.put_statistics(name, mean + draw(mean) * var.sqrt(), var * torch.exp2(draw(var)))
        for leaf in ("weight", "bias"):
            if f"{name}.{leaf}" in skeleton.names:
                value = skeleton.tensor(f"{name}.{leaf}")
                skeleton.put(f"{name}.{leaf}", value * (1 + draw(value) / 2) + draw(value) / 4)
