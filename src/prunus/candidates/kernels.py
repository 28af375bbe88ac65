"""Layers as the kernels take them: ReLUs within convolutions, weights in the number format they run in.

oneDNN applies a ReLU to what a convolution has in its registers, which saves a pass over the
activations; PyTorch has that kernel for its own compiler. Autocast converts the weights of a layer
again for every batch; converted once, they give the same numbers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.candidates.fold import Pair, fold_, unchanged_by
from prunus.candidates.numbers import are_finite
from prunus.candidates.skeleton import Skeleton
from prunus.graph import Inputs
from prunus.graph.inputs import call
from prunus.train.forward import modes_restored

_CONVERTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""What autocast converts the weights of. Subclasses may read theirs in other ways."""


@dataclass(frozen=True)
class Rectified:
    """A convolution, behind its folded batch norm, and the ReLU that alone reads what comes out."""

    layer: str
    relu: str


def find_rectified(
    network: nn.Module,
    pairs: Sequence[Pair],
    inputs: Inputs,
    dtype: torch.dtype = torch.float32,
) -> tuple[Rectified, ...]:
    """ReLUs that their convolutions can compute; watched, then tried, as ``find_pairs`` does it.

    Args:
        network: Run in evaluation mode; not changed. Elsewhere than on a CPU there are none.
        pairs: Batch norms that are folded.
        inputs: A real batch; two samples do.
        dtype: That convolutions will run in.
    """
    if not pairs or not _is_on_cpu(network) or not has_rectifier(dtype):
        return ()
    with modes_restored(network):
        network.eval()
        found = _watch(network, pairs, inputs)

    def change(skeleton: Skeleton) -> None:
        fold_(skeleton, pairs)
        rectify_(skeleton, found)

    try:
        return tuple(found) if unchanged_by(network, inputs, change) else ()
    except (RuntimeError, TypeError):  # the kernel takes less than the layer does, and no keywords
        return ()


def rectify_(skeleton: Skeleton, found: Iterable[Rectified], *, doubting: bool = False) -> None:
    """Let convolutions compute the ReLUs behind them, until the next plan is loaded.

    The kernel makes 0 of what is no number. Where weights or biases are none, with the batch norms that
    are folded into them, the plan runs in plain layers.

    Args:
        skeleton: With batch norms folded.
        found: Of its network.
        doubting: Look at activations, too: see ``Skeleton.doubtful``.
    """
    for one in found:
        layer: Any = skeleton.submodule(one.layer)
        if not are_finite(layer.weight, layer.bias):
            skeleton.plain = True
        convolve = partial(_convolve_and_rectify, layer)
        skeleton.hasten(one.layer, partial(_doubt, skeleton, convolve) if doubting else convolve)
        skeleton.hasten(one.relu)


def converted_layers(skeleton: Skeleton) -> tuple[str, ...]:
    """Paths of layers whose weights autocast converts whenever they are read; nothing else reads them."""
    return tuple(
        path
        for path, module in skeleton.module.named_modules()
        if type(module) in _CONVERTED
        and skeleton.owners(f"{path}.weight") == (path,)
        and skeleton.owners(f"{path}.bias") in ((), (path,))
    )


def convert_(skeleton: Skeleton, layers: Iterable[str], dtype: torch.dtype) -> None:
    """Convert weights and biases, those that folding brought, too, until the next plan is loaded."""
    for name in (f"{path}.{leaf}" for path in layers for leaf in ("weight", "bias")):
        if skeleton.holds(name):
            skeleton.put(name, skeleton.tensor(name).to(dtype))


def _doubt(skeleton: Skeleton, convolve: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    skeleton.doubtful |= not are_finite(x)
    return convolve(x)


def _convolve_and_rectify(layer: Any, x: Tensor) -> Tensor:
    # Read at every call: a plan changes the groups, and what a layer holds.
    weight, bias = layer.weight, layer.bias
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        *(x.to(weight.dtype), weight, bias),
        *(layer.padding, layer.stride, layer.dilation, layer.groups),
        *("relu", [], ""),
    )
    return out


@cache
def has_rectifier(dtype: torch.dtype) -> bool:
    """Whether the kernel is there, and takes a number format on this CPU; bfloat16 it takes on few."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn
        layer = nn.Conv2d(1, 1, 1).to(dtype).requires_grad_(False)
    try:
        _convolve_and_rectify(layer, torch.zeros(1, 1, 1, 1, dtype=dtype))
    except (AttributeError, RuntimeError):  # no such kernel, or not here
        return False
    return True


def _is_on_cpu(network: nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in network.parameters())


def _watch(network: nn.Module, pairs: Sequence[Pair], inputs: Inputs) -> list[Rectified]:
    """ReLUs whose input is the very tensor that a folded batch norm returned; called once."""
    layers = {
        pair.norm: pair.layer
        for pair in pairs
        if is_plain_convolution(network.get_submodule(pair.layer))
    }
    made: dict[int, tuple[str, Tensor]] = {}
    calls: dict[str, int] = {}
    found: list[Rectified] = []

    def after(name: str) -> Any:
        def hook(_module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if name in layers:
                made[id(out)] = (layers[name], out)
            elif given and (maker := made.get(id(given[0]))) is not None:
                found.append(Rectified(maker[0], name))

        return hook

    handles = [
        module.register_forward_hook(after(name))
        for name, module in network.named_modules()
        if name in layers or type(module) is nn.ReLU
    ]
    try:
        call(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [one for one in found if calls[one.relu] == 1]


def is_plain_convolution(layer: nn.Module) -> bool:
    """Whether a layer is a 2-D convolution with zeros around, as kernels outside of PyTorch know it."""
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )
