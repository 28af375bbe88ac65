"""What a network in PyTorch and a deployed session share: inputs in, logits out."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from prunus.graph.inputs import logits_in

ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""One tensor, positional arguments, or keyword arguments of a network."""


@runtime_checkable
class Predictor(Protocol):
    """Anything that maps inputs to logits on one device."""

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""

    def __call__(self, inputs: Any, /) -> Any:
        """Logits, samples first."""


@final
class NetworkPredictor:
    """A network as a `Predictor`: called in eval mode, without gradients, its modes given back.

    Tensors that it keeps on a call, such as tables of positions, can be trained on afterwards: they
    are no inference tensors.

    Outputs that are no tensor are read at ``logits`` (Hugging Face) or at their first entry, as in
    ``prunus.train``.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @property
    def device(self) -> torch.device:
        """Device of the first parameter or buffer; the CPU for a network without any."""
        for tensor in (*self.network.parameters(), *self.network.buffers()):
            return tensor.device
        return torch.device("cpu")

    def __call__(self, inputs: ExampleInputs, /) -> Tensor:
        """Logits of a batch that lies on ``device``.

        Raises:
            InputError: The output holds no tensor of logits.
        """
        with eval_mode(self.network), torch.no_grad():
            return logits_in(call(self.network, inputs))


def as_predictor(network: nn.Module) -> NetworkPredictor:
    """The network as a `Predictor`. It is shared, not copied."""
    return NetworkPredictor(network)


def call(network: nn.Module, inputs: ExampleInputs) -> Any:
    """Run a network on a tensor, on positional or on keyword arguments."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    if isinstance(inputs, tuple | list):
        return network(*inputs)
    return network(inputs)


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module has its own training flag back."""
    flags = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python from collecting garbage inside the block, of whatever ran before."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
