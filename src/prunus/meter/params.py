"""Parameters of a network, each stored value counted once."""

from collections.abc import Hashable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunus.errors import InputError


def tensor_key(tensor: Tensor) -> Hashable:
    """A key equal for tensors that show the same memory in the same way: tied tensors."""
    if tensor.layout != torch.strided:
        return id(tensor)
    # The storage's own address, not its data pointer: that is 0 for every tensor on meta.
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def count_params(network: nn.Module) -> int:
    """Number of parameters; tied ones count once, buffers do not count.

    >>> count_params(nn.Linear(3, 2))
    8

    Raises:
        InputError: A lazy parameter has no shape yet.
    """
    return sum(parameter.numel() for parameter in _unique_parameters(network))


def count_nonzero_params(network: nn.Module) -> int:
    """Number of parameters that are not zero; tied ones count once, buffers do not count.

    Raises:
        InputError: A parameter has no shape yet (lazy) or no values (on the meta device).
    """
    total = 0
    for parameter in _unique_parameters(network):
        if parameter.is_meta:
            raise InputError(
                f"network has a parameter of shape {list(parameter.shape)} on the meta device, "
                "which holds no values; load its weights first"
            )
        total += int(torch.count_nonzero(parameter.detach()))
    return total


def require_shapes(network: nn.Module) -> None:
    """Refuse a network with parameters or buffers that have no shape yet.

    Raises:
        InputError: A lazy parameter or buffer is not initialized, or it is no network.
    """
    if not isinstance(network, nn.Module):
        raise InputError(f"network is a {type(network).__name__}: give a torch.nn.Module")
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor):
            raise InputError(
                f"network has the uninitialized lazy tensor '{name}'; "
                "run it once on an example input first"
            )


def _unique_parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    require_shapes(network)
    seen: set[Hashable] = set()
    for parameter in network.parameters():
        key = _elements_key(parameter)
        if key not in seen:
            seen.add(key)
            yield parameter


def _elements_key(tensor: Tensor) -> Hashable:
    """A key equal for tensors that show the same memory in any order: a matrix and its transpose."""
    if tensor.layout != torch.strided:
        return id(tensor)
    runs: list[tuple[int, int]] = []  # stride and length; axes that follow each other are one
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length == 1:
            continue
        if runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] * length)
        else:
            runs.append((stride, length))
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(runs), tensor.dtype
