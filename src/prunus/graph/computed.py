"""Weights that a layer computes whenever they are read, as ``torch.nn.utils.parametrize`` has them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_WEIGHT = "weight"


def weight_of(module: nn.Module) -> Tensor | None:
    """The tensor ``weight`` of a layer, for its sizes; None where it has none.

    A weight that is computed is read as in evaluation, on copies of the buffers: ``spectral_norm``
    iterates in train mode at every read, and keeps where it got to.
    """
    tables = (module._parameters, module._buffers, vars(module))
    held = next((table[_WEIGHT] for table in tables if _WEIGHT in table), None)
    if held is None and hasattr(type(module), _WEIGHT):
        with _untouched(module), torch.no_grad():
            held = getattr(module, _WEIGHT, None)
    return held if isinstance(held, Tensor) else None


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """In evaluation, with buffers whose changes are lost."""
    before = [(part, part.training, dict(part._buffers)) for part in module.modules()]
    try:
        for part, _, buffers in before:
            part.training = False
            copies = {n: b if b is None else b.clone() for n, b in buffers.items()}
            part._buffers.update(copies)
        yield
    finally:
        for part, mode, buffers in before:
            part.training = mode
            part._buffers.update(buffers)
