"""Connections held at zero: single weights or kernels that stay zero through any later training.

The mask lies beside the weight as a non-persistent buffer, so it is sliced and copied with the
network and never saved twice (the zeros in the weight are the truth). Training keeps it by zeroing
the gradient where the mask is zero: a weight that is zero and has no gradient stays zero under
momentum, weight decay and Adam alike. Hooks do not survive ``copy.deepcopy``; whoever trains a copy
calls ``hold_connections_`` first, as Prunus's own training does.
"""

from collections.abc import Callable

import torch
from torch import nn

_SUFFIX = "_prunus_held"


def register_held(module: nn.Module, leaf: str, mask: torch.Tensor) -> None:
    """Lay a boolean mask (same shape as the weight; False = held at zero) beside a weight."""
    module.register_buffer(leaf + _SUFFIX, mask, persistent=False)


def held_connections(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameter name to mask, for all parameters with held connections."""
    return {
        name.removesuffix(_SUFFIX): mask
        for name, mask in network.named_buffers()
        if name.endswith(_SUFFIX)
    }


def hold_connections_(network: nn.Module) -> None:
    """Zero what is held, now and in the gradient of every later backward pass."""
    parameters = dict(network.named_parameters())
    for name, mask in held_connections(network).items():
        weight = parameters[name]
        with torch.no_grad():
            weight.mul_(mask.to(weight.dtype))
        if not getattr(weight, "_prunus_hooked", False):
            weight.register_hook(_silence(mask))  # type: ignore[no-untyped-call]  # torch leaves it bare
            weight._prunus_hooked = True  # type: ignore[attr-defined]


def _silence(mask: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def hook(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * mask.to(gradient)

    return hook
