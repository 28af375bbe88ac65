"""What every source of a network has to give: a module, and one that can be copied."""

import copy

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from prunus.errors import InputError, first_line

_COMPRESSED = {torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}


def copied(network: nn.Module, model: str) -> nn.Module:
    """A copy of a network.

    Raises:
        InputError: It has lazy layers that never ran, or tensors that are computed from others or
            cannot be copied.
    """
    lazy = [name for name, p in network.named_parameters() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise InputError(
            f"model '{model}' has lazy layers without shapes ('{lazy[0].rpartition('.')[0]}'): give "
            "their sizes, or run the network once on a batch where it is built"
        )
    _require_copied(network, model)
    try:
        return copy.deepcopy(network)
    except Exception as error:  # a module's own __deepcopy__ may raise anything
        raise InputError(
            f"model '{model}' cannot be copied ({first_line(error)}): a layer keeps a tensor that is "
            "computed from others, as the old torch.nn.utils.weight_norm and spectral_norm do; take "
            "those of torch.nn.utils.parametrizations, or remove_weight_norm before"
        ) from error


def _require_copied(network: nn.Module, model: str) -> None:
    """Refuse tensors of a layout that PyTorch itself does not copy with what holds them.

    Raises:
        InputError: There is one.
    """
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.layout in _COMPRESSED:
            raise InputError(
                f"model '{model}' cannot be copied: '{name}' is of {tensor.layout}, which PyTorch does "
                "not copy; take to_sparse_coo() of it, or keep it dense"
            )


def require_module(network: object, model: str) -> nn.Module:
    """What a factory gave.

    Raises:
        InputError: It is no network.
    """
    if not isinstance(network, nn.Module):
        raise InputError(
            f"model '{model}' gave {type(network).__name__}: "
            "the factory must return a torch.nn.Module"
        )
    return network
