"""What an engine is given to write, and what it has written."""

import ast
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data import Inputs
from prunus.errors import InputError
from prunus.graph import pad_plainly_
from prunus.meter import logits_in
from prunus.plan import Plan
from prunus.quantize.options import Deployment
from prunus.quantize.smoothed import SmoothedLinear
from prunus.records import Source


@dataclass(frozen=True)
class Job:
    """A network to write; see ``deploy``."""

    network: nn.Module
    deployment: Deployment
    inputs: Inputs
    calibration: tuple[Inputs, ...]
    source: Source | None
    plans: tuple[Plan, ...]
    dynamic_length: bool


@dataclass(frozen=True)
class Written:
    """Files that an engine wrote: those that count as the network's size, and what to know."""

    model_files: tuple[str, ...]
    notes: tuple[str, ...] = ()


@contextmanager
def logits_alone(network: nn.Module) -> Iterator[nn.Module]:
    """The network, answering with its logits meanwhile: what a session is to give, whatever else it does."""
    handle = network.register_forward_hook(lambda _, __, output: logits_in(output))
    try:
        yield network
    finally:
        handle.remove()


def int8_layers(network: nn.Module, deployment: Deployment) -> dict[str, nn.Linear]:
    """Linear layers that are quantized, by every path that leads to them."""
    if deployment.weights != "int8":
        return {}
    left = excluded(network, deployment)
    return {
        path: module
        for path, module in network.named_modules(remove_duplicate=False)
        if type(module) in (nn.Linear, SmoothedLinear) and path not in left
    }


def excluded(network: nn.Module, deployment: Deployment) -> frozenset[str]:
    """All paths of modules that stay in float: one of a module's names is enough to exclude it."""
    named = list(network.named_modules(remove_duplicate=False))
    left = {module for path, module in named if deployment.excludes(path)}
    return frozenset(path for path, module in named if module in left)


def sole_layers(network: nn.Module, deployment: Deployment) -> list[nn.Linear]:
    """Linear layers that are quantized, with weights that no other module has."""
    owners: dict[int, set[nn.Module]] = {}
    for module in network.modules():
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), set()).add(module)
    layers = dict.fromkeys(int8_layers(network, deployment).values())
    own = (layer for layer in layers if layer._parameters.get("weight") is not None)
    return [layer for layer in own if len(owners[id(layer.weight)]) == 1]


def trial(network: nn.Module) -> nn.Module:
    """A copy to run on samples, which leave their mark on buffers and caches; on the CPU, in eval mode."""
    own = copy.deepcopy(network).cpu().eval()
    pad_plainly_(own)
    return own


def int8_tables(network: nn.Module, deployment: Deployment) -> dict[str, nn.Embedding]:
    """Tables of word embeddings that are quantized, by every path that leads to them."""
    if deployment.embeddings != "int8":
        return {}
    left = excluded(network, deployment)
    return {
        path: module
        for path, module in network.named_modules(remove_duplicate=False)
        if _is_word_table(path, module) and path not in left
    }


def table_names(network: nn.Module, deployment: Deployment) -> dict[str, frozenset[str]]:
    """By one path of each quantized table every name of its weight: a tied one has several."""
    tables = {id(module.weight): path for path, module in int8_tables(network, deployment).items()}
    names: dict[str, set[str]] = {path: set() for path in tables.values()}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if id(parameter) in tables:
            names[tables[id(parameter)]].add(name)
    return {path: frozenset(found) for path, found in names.items()}


def unmatched(network: nn.Module, deployment: Deployment) -> tuple[str, ...]:
    """Notes on globs of ``exclude`` that no module of the network answers to."""
    paths = [path for path, _ in network.named_modules(remove_duplicate=False) if path]
    return tuple(
        f"exclude: '{pattern}' matches no layer, and keeps none in float32"
        for pattern in deployment.exclude
        if not any(fnmatchcase(path, pattern) for path in paths)
    )


def given(batch: Inputs, names: Sequence[str]) -> dict[str, Any]:
    """Inputs as an exported network takes them: arrays by name, without those that it never reads."""
    if isinstance(batch, Tensor):
        return {names[0]: batch.numpy()}
    return {name: batch[name].numpy() for name in names if name in batch}


def fits_float16(tensor: Tensor) -> bool:
    """Whether float32 values are in float16's range, known to 11 bits of the largest.

    Of a vector each is, but zeros: what is divided by a tiny one, such as a deviation, would be infinite.
    """
    if tensor.dtype != torch.float32 or not tensor.numel():
        return False
    half = torch.finfo(torch.float16)
    sizes = tensor.abs()
    largest = float(sizes.max())
    if largest == 0:
        return True
    if not largest <= half.max:  # NaN is none that it holds, either
        return False
    is_vector = tensor.numel() == max(tensor.shape, default=1)
    finest = float(sizes[sizes > 0].min()) if is_vector else largest  # to have all 11 bits
    return finest >= half.tiny


def require_in_float16(network: nn.Module, remedy: str) -> None:
    """Refuse values that would be infinite in float16, such as a variance of inputs in thousands.

    Raises:
        InputError: A tensor of the network's state has one.
    """
    half = torch.finfo(torch.float16)
    # Buffers beside the state are masks more often than numbers: there infinities do no harm.
    for name, tensor in network.state_dict().items():
        # What is no tensor is extra state.
        is_float = isinstance(tensor, Tensor) and tensor.is_floating_point()
        largest = float(tensor.abs().max()) if is_float and tensor.numel() else 0.0
        if half.max < largest < float("inf"):
            raise InputError(
                f"weights=float16 ends at {half.max:g}, and '{name}' reaches {largest:g}; use {remedy}"
            )


def excluded_nodes(model: Any, network: nn.Module, deployment: Deployment) -> list[str]:
    """Names of the nodes of an ONNX model that were exported from excluded layers.

    A layer of several names is in the file under one of them.
    """
    left = excluded(network, deployment)
    return nodes_of(model, lambda path: path in left or deployment.excludes(path))


def nodes_of(model: Any, is_chosen: Callable[[str], bool]) -> list[str]:
    """Names of the nodes of an ONNX model that were exported from the layers of these paths.

    Weights alone do not tell: the exporters rename those that they transpose. Nor do modules alone:
    a convolution that a norm was folded into counts as the norm's.
    """

    def is_of(node: Any) -> bool:
        holders = [name.rpartition(".")[0] for name in node.input if name.endswith(".weight")]
        return any(is_chosen(path) for path in (_layer_of(node), *holders))

    return [node.name for node in model.graph.node if is_of(node)]


def _layer_of(node: Any) -> str:
    """Path of the module that a node was exported from."""
    for note in node.metadata_props:
        if note.key == "pkg.torch.onnx.name_scopes":  # modules from the outermost, then operation
            return str(["", *ast.literal_eval(note.value)][-2])
    return ".".join(node.name.strip("/").split("/")[:-1])  # the older exporter: /layers.0/back/LSTM


def _is_word_table(path: str, module: nn.Module) -> bool:
    """Whether a layer is a table of word embeddings; positions and token types are none.

    Subclasses are none, which may do more than look up rows.
    """
    if type(module) is not nn.Embedding or module.max_norm is not None:
        return False
    name = path.lower()
    others = ("position", "token_type", "segment", "relative", "wpe")  # wpe: positions of GPT-2
    return not any(word in name for word in others)
