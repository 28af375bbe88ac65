"""What networks take (a tensor, a tuple of positional or a dict of keyword arguments) and return."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.utils import _pytree as pytree

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
    if not any(True for _ in flat_tensors(inputs)):
        raise InputError("example_inputs holds no tensor; give the network one real batch")
    return inputs


def check_network(
    network: object, remedy: str = "give a torch.nn.Module", *, values: bool = True
) -> None:
    """Refuse what is no network, such as its class or the function that makes it.

    Args:
        network: Anything.
        remedy: What to give where neither a class nor a function is told.
        values: Whether its tensors must have values.

    Raises:
        InputError: It is no module, or one whose tensors have no shapes yet, or no values.
    """
    if isinstance(network, nn.Module):
        lazy = [
            name for name, p in network.named_parameters() if isinstance(p, UninitializedParameter)
        ]
        if lazy:
            raise InputError(
                f"network has lazy layers without shapes ('{lazy[0].rpartition('.')[0]}'): run it once "
                "on a batch before"
            )
        meta = [name for name, p in network.named_parameters() if p.is_meta]
        if meta and values:
            raise InputError(
                f"parameter '{meta[0]}' of the network is on the meta device, without values: load "
                "weights before"
            )
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
    """The first sample of a batch, its batch dim kept; see ``first_samples``."""
    return first_samples(inputs, 1)


def first_samples(inputs: Inputs, n: int) -> Inputs:
    """The first ``n`` samples of a batch; what is no batch, such as a time or a scale, passes as it is."""
    size = batch_size(inputs)
    return _each(inputs, lambda t: t[:n] if t.dim() and t.shape[0] == size else t)


def batch_size(inputs: Inputs) -> int:
    """How many samples a batch has: the first leading size above 1; a time or a scale has none."""
    sizes = [int(t.shape[0]) for t in flat_tensors(inputs) if t.dim()]
    return next((size for size in sizes if size > 1), 1)


def _each(inputs: Inputs, change: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
    """The same inputs with every tensor changed, however deep in tuples, lists and dicts."""
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)
    changed: Inputs = pytree.tree_map_only(torch.Tensor, change, inputs)
    return changed


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Inputs with their floating and complex tensors in another precision."""
    return _each(inputs, lambda t: in_precision(t, dtype))


def in_precision(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A floating or complex tensor in the precision of a floating type; others as they are."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def recast_(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """All floating and complex tensors of a network in another precision, in place.

    ``network.to(dtype)`` would make real numbers of complex ones.
    """
    network._apply(lambda tensor: in_precision(tensor, dtype))  # type: ignore[no-untyped-call]
    return network


def flat_tensors(values: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from flat_tensors(value)
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from flat_tensors(value)


def output_tensors(output: Any) -> list[torch.Tensor]:
    """All tensors a network returned, however deep in collections, mappings and plain objects.

    Keys and values that a decoder keeps for its next call are no answer, and follow what is cut.
    """
    found: list[torch.Tensor] = []
    _gather(output, found, {})
    return found


def logits_in(output: Any) -> torch.Tensor:
    """Logits in what a network returned, of any shape.

    A tensor is taken as it is, a mapping or an object at ``logits`` (Hugging Face), any other tuple or
    list at its first entry: outputs beside the logits, such as those of auxiliary heads, come after.

    Raises:
        InputError: There is no tensor.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, torch.Tensor):
        found = getattr(output, "logits", None)
        if found is None and isinstance(output, tuple | list) and output:
            found = output[0]
    if not isinstance(found, torch.Tensor):
        raise InputError(
            f"network returned {type(output).__name__}: it must return logits, as a tensor, "
            "as the first entry of a tuple, or under the name 'logits'"
        )
    return found


_LEAVES = (str, bytes, int, float, complex, range, type, np.ndarray, nn.Module)


def _gather(value: Any, found: list[torch.Tensor], seen: dict[int, Any]) -> None:
    """Tensors in a value, but for what was seen: by its id, which is its own while it is held."""
    if isinstance(value, torch.Tensor):
        found.append(value)
        return
    if value is None or isinstance(value, _LEAVES) or id(value) in seen or _is_cache(value):
        return
    seen[id(value)] = value
    if isinstance(value, Mapping):
        parts = [part for name, part in value.items() if name != "past_key_values"]
    elif isinstance(value, Collection):
        parts = list(value)
    else:
        slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
        names = [name for one in slots for name in ((one,) if isinstance(one, str) else one)]
        held = [getattr(value, name) for name in names if hasattr(value, name)]
        parts = [*held, *getattr(value, "__dict__", {}).values()]
    for part in parts:
        _gather(part, found, seen)


def _is_cache(value: object) -> bool:
    """Whether it is a cache of Hugging Face, told by its class: transformers need not be there."""
    return any(
        (kind.__module__, kind.__name__) == ("transformers.cache_utils", "Cache")
        for kind in type(value).__mro__
    )
