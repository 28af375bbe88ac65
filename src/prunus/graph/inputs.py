"""Example inputs: a tensor, a tuple of positional or a dict of keyword arguments."""

from collections.abc import Callable, Iterator, Mapping
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


def check_network(network: object, remedy: str = "give a torch.nn.Module") -> None:
    """Refuse what is no network, such as its class or the function that makes it.

    Args:
        network: Anything.
        remedy: What to give where neither a class nor a function is told.

    Raises:
        InputError: It is no module.
    """
    if isinstance(network, nn.Module):
        return
    if isinstance(network, type):
        raise InputError(
            f"network is the class {network.__name__}; give an instance: {network.__name__}()"
        )
    if callable(network):
        name = getattr(network, "__name__", type(network).__name__)
        raise InputError(f"network is the function {name}; give the network it makes: {name}()")
    raise InputError(f"network is a {type(network).__name__}; {remedy}")


def call(network: nn.Module, inputs: Inputs) -> Any:
    """Run a network on a copy of its inputs (it may work in place), without gradients."""
    inputs = _each(inputs, torch.Tensor.clone)
    with torch.no_grad():
        if isinstance(inputs, torch.Tensor):
            return network(inputs)
        if isinstance(inputs, Mapping):
            return network(**inputs)
        return network(*inputs)


def first_sample(inputs: Inputs) -> Inputs:
    """The first sample of a batch, its batch dim kept; what is no batch passes as it is."""
    size = next((t.shape[0] for t in flat_tensors(inputs) if t.dim()), 1)

    return _each(inputs, lambda t: t[:1] if t.dim() and t.shape[0] == size else t)


def _each(inputs: Inputs, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
    """The same inputs with every tensor at the top level changed."""

    def one(value: Any) -> Any:
        return change(value) if isinstance(value, torch.Tensor) else value

    if isinstance(inputs, torch.Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {k: one(v) for k, v in inputs.items()}
    return tuple(one(v) for v in inputs)


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Inputs with their floating tensors in another precision."""
    return _each(inputs, lambda t: t.to(dtype) if t.is_floating_point() else t)


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
    if isinstance(output, Mapping):
        return list(flat_tensors(dict(output)))
    if isinstance(output, torch.Tensor | tuple | list):
        return list(flat_tensors(output))
    return list(flat_tensors(getattr(output, "__dict__", {})))
