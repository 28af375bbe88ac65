"""Bytes that zeros of single weights could save, in the simplest format that leaves them out."""

import torch
from torch import Tensor, nn

from prunus.meter.size import stored_tensors

_BITS_PER_BYTE = 8


def sparse_bytes(network: nn.Module) -> int:
    """Bytes of a network whose parameters are stored as a bitmask and the values that are not zero.

    Each parameter has the smaller of two forms: all values, or one bit an element, filled up to whole
    bytes, and the values that the bits name. Buffers are stored whole, tied tensors once, and no
    header of a file is counted. No engine of Prunus reads this format: it is what zeros could save,
    beside the bytes that they do take.

    >>> layer = nn.Linear(16, 1, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> sparse_bytes(layer)
    2

    Raises:
        InputError: The state dict holds something else than tensors with values.
    """
    names = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    return sum(
        _least_bytes(tensor) if name in names else _dense_bytes(tensor)
        for name, tensor in stored_tensors(network).items()
    )


def _dense_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _least_bytes(tensor: Tensor) -> int:
    mask = -(-tensor.numel() // _BITS_PER_BYTE)
    values = int(torch.count_nonzero(tensor)) * tensor.element_size()
    return min(_dense_bytes(tensor), mask + values)
