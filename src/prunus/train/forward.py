"""How a network is called: inputs in, logits out, with its mode and place given back afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data import Inputs
from prunus.errors import InputError, PrunusError, kind_and_line
from prunus.graph.difference import same_values
from prunus.graph.inputs import logits_in

_VECTOR = 16
"""Numbers of float32 in the widest registers of a CPU."""


def forward_logits(network: nn.Module, inputs: Inputs) -> Tensor:
    """Logits ``[samples, classes]`` of a batch.

    A dictionary is passed as keyword arguments; outputs that are no tensor are read at ``logits``
    (Hugging Face) or at their first entry, as in ``prunus.meter``.

    Raises:
        InputError: The output holds no logits of two dimensions.
    """
    return logits_of(network(inputs) if isinstance(inputs, Tensor) else network(**inputs))


def logits_of(output: Any) -> Tensor:
    """Logits ``[samples, classes]`` in what a network returned; see ``logits_in``.

    Raises:
        InputError: It holds no logits of two dimensions.
    """
    logits = logits_in(output)
    if logits.ndim != 2:
        raise InputError(
            f"network returned {list(logits.shape)}: it must return logits [samples, classes]"
        )
    return logits


@contextmanager
def foreign_errors_told(where: str) -> Iterator[None]:
    """Name the place of what a network's own code raises: a branch may break that no check took.

    Raises:
        InputError: In the place of whatever is no error of Prunus.
    """
    try:
        yield
    except PrunusError:
        raise
    except Exception as error:
        raise InputError(
            f"{where} the network raised {kind_and_line(error)}; it must run on any batch of the data, cut "
            "or not: look for what it does by the values or the number of its samples, or give smaller "
            "batches where memory ran out"
        ) from error


def to_place(inputs: Inputs, device: torch.device, *, channels_last: bool) -> Inputs:
    """Inputs on ``device``; with ``channels_last`` images ``[N, C, H, W]`` get that layout."""
    if isinstance(inputs, Tensor):
        return _move(inputs, device, channels_last)
    return {name: _move(tensor, device, channels_last) for name, tensor in inputs.items()}


def device_of(network: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU for a network without any."""
    for tensor in (*network.parameters(), *network.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def modes_restored(network: nn.Module) -> Iterator[None]:
    """Give every module its training flag back: a user may have frozen some of them."""
    flags = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def buffers_restored(network: nn.Module) -> Iterator[None]:
    """Give every buffer its values back: some networks keep count in evaluation, too."""
    held = [
        (module._buffers, name, tensor, tensor.detach().clone())
        for module in network.modules()
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]
    try:
        yield
    finally:
        for table, name, tensor, value in held:
            table[name] = tensor
            if not same_values(tensor, value):
                tensor.data = value


@contextmanager
def placed(network: nn.Module, device: torch.device, *, channels_last: bool) -> Iterator[None]:
    """Move a network to ``device`` and layout, in place, and back at the end.

    Only 4-D parameters (2-D convolutions) have the layout; others keep theirs. Narrow convolutions
    that could not be trained in it on a CPU compute as they are, and answer in it.
    """
    home = device_of(network)
    turned: list[nn.Parameter] = []
    network.to(device)
    with ExitStack() as hooks:
        if channels_last:
            for layer in _overrunning(network) if device.type == "cpu" else []:
                hooks.callback(layer.register_forward_pre_hook(_take_contiguous).remove)
                hooks.callback(layer.register_forward_hook(_answer_channels_last).remove)
            turned = [p for p in network.parameters() if p.ndim == 4 and p.is_contiguous()]
            for parameter in turned:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        try:
            yield
        finally:
            for parameter in turned:
                parameter.data = parameter.data.contiguous()
            network.to(home)


def _overrunning(network: nn.Module) -> list[nn.Conv2d]:
    """Convolutions whose weight gradient in channels_last writes past its memory.

    oneDNN 3.12, as PyTorch 2.13 has it, does so on CPUs with AVX2 where a 1x1 kernel has a stride
    and fewer input channels than a register has numbers, as shortcuts have that were cut: the
    process ends in a crash, or goes on with other tensors damaged.
    """
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels // module.groups < _VECTOR
    ]


def _take_contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in inputs)


def _answer_channels_last(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.contiguous(memory_format=torch.channels_last)


def _move(tensor: Tensor, device: torch.device, channels_last: bool) -> Tensor:
    if channels_last and tensor.ndim == 4:
        return tensor.to(device, memory_format=torch.channels_last)
    return tensor.to(device)
