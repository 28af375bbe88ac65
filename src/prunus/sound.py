"""Weights that a network can compute with: finite, and no variance below zero."""

import torch
from torch import Tensor, nn

from prunus.errors import InputError

_MEAN, _VARIANCE = "running_mean", "running_var"
REMEDY = "take the weights of a training that did not diverge"


def fault(name: str, held: Tensor, value: Tensor) -> str:
    """What is wrong with the value of one tensor of a network, in words; "" where nothing is.

    Parameters and the statistics of batch norms are judged. Other buffers are not, as masks hold
    ``-inf``; nor is ``-inf`` in a parameter that is not trained, which is a mask, too.

    Args:
        name: Of the tensor in the network.
        held: The parameter or buffer.
        value: What it holds, or would hold, in its own type.
    """
    last = name.rpartition(".")[2]
    if not isinstance(held, nn.Parameter) and last not in {_MEAN, _VARIANCE}:
        return ""
    if value.is_meta or value.layout != torch.strided or not value.is_floating_point():
        return ""
    if value.element_size() == 1:
        value = value.float()  # PyTorch looks at no 8 bits itself
    bad = ~value.isfinite()
    if isinstance(held, nn.Parameter) and not held.requires_grad:
        bad &= value != -torch.inf
    if bool(bad.any()):
        return f"holds values that are not finite ({int(bad.sum())} of {value.numel()})"
    if last == _VARIANCE and bool((value < 0).any()):
        return f"holds a variance below 0 ({float(value.min()):g})"
    return ""


def require_sound(network: nn.Module) -> None:
    """Refuse a network that cannot compute: all that is found in it would be blamed on something else.

    Raises:
        InputError: A parameter or a statistic of a batch norm is not finite, or a variance negative.
    """
    for name, held in (*network.named_parameters(), *network.named_buffers()):
        found = fault(name, held, held.detach())
        if found:
            raise InputError(f"tensor '{name}' of {type(network).__name__} {found}: {REMEDY}")
