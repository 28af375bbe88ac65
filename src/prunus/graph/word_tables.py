"""Which tables a network looks the pieces of texts up in."""

from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph.inputs import call

_PIECES = "input_ids"


def word_tables(network: nn.Module, inputs: Any) -> tuple[str, ...]:
    """Names of the weights of all tables that are looked up by the pieces of a text.

    Args:
        network: Called once.
        inputs: A batch; one without ``input_ids`` has no pieces.
    """
    found: dict[int, str] = {}
    ids = inputs.get(_PIECES) if hasattr(inputs, "get") else None
    if isinstance(ids, Tensor):
        handles = [
            module.register_forward_pre_hook(
                _Looked(f"{path}.weight", ids, found), with_kwargs=True
            )
            for path, module in network.named_modules()
            if isinstance(module, nn.Embedding)
        ]
        try:
            call(network, inputs)
        finally:
            for handle in handles:
                handle.remove()
    return tuple(dict.fromkeys(found.values()))


class _Looked:
    """Notes a table that is called with the pieces themselves."""

    def __init__(self, name: str, ids: Tensor, found: dict[int, str]) -> None:
        self._name, self._ids, self._found = name, ids, found

    def __call__(
        self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        given = next(v for v in (*arguments, *named.values()) if isinstance(v, Tensor))
        if given.shape == self._ids.shape and torch.equal(given, self._ids):
            self._found[id(module.weight)] = self._name
