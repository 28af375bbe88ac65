"""Example inputs: a tensor, a tuple of positional or a dict of keyword arguments."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from prunus.errors import InputError

Inputs = torch.Tensor | tuple[Any, ...] | Mapping[str, Any]


def check_inputs(inputs: Any) -> Inputs:
    """Refuse what is no example input.

    Raises:
        InputError: Not a tensor, tuple or dict, or without a tensor in it.
    """
    if isinstance(inputs, list):
        inputs = tuple(inputs)
    if not isinstance(inputs, torch.Tensor | tuple | Mapping):
        raise InputError(
            f"example_inputs is a {type(inputs).__name__}; give a tensor, a tuple of positional "
            "or a dict of keyword arguments"
        )
    values = (
        [inputs]
        if isinstance(inputs, torch.Tensor)
        else list(inputs.values() if isinstance(inputs, Mapping) else inputs)
    )
    if not any(isinstance(v, torch.Tensor) for v in values):
        raise InputError("example_inputs holds no tensor; give the network one real batch")
    return inputs


def call(network: nn.Module, inputs: Inputs) -> Any:
    """Run a network on its inputs, without gradients."""
    with torch.no_grad():
        if isinstance(inputs, torch.Tensor):
            return network(inputs)
        if isinstance(inputs, Mapping):
            return network(**inputs)
        return network(*inputs)


def first_sample(inputs: Inputs) -> Inputs:
    """The first sample of a batch, its batch dim kept; what is no batch passes as it is."""
    size = next((t.shape[0] for t in flat_tensors(inputs) if t.dim()), 1)

    def one(value: Any) -> Any:
        batched = isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == size
        return value[:1] if batched else value

    if isinstance(inputs, torch.Tensor):
        return one(inputs)  # type: ignore[no-any-return]
    if isinstance(inputs, Mapping):
        return {k: one(v) for k, v in inputs.items()}
    return tuple(one(v) for v in inputs)


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Inputs with their floating tensors in another precision."""

    def one(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    if isinstance(inputs, torch.Tensor):
        return one(inputs)  # type: ignore[no-any-return]
    if isinstance(inputs, Mapping):
        return {k: one(v) for k, v in inputs.items()}
    return tuple(one(v) for v in inputs)


def flat_tensors(values: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from flat_tensors(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from flat_tensors(value)


def output_tensors(output: Any) -> list[torch.Tensor]:
    """All tensors a network returned, also inside mappings and plain objects."""
    if isinstance(output, torch.Tensor | tuple | list | dict):
        return list(flat_tensors(dict(output) if isinstance(output, Mapping) else output))
    return list(flat_tensors(dict(output) if isinstance(output, Mapping) else vars(output)))
