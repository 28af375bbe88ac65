"""Edits that replace modules: low-rank chains, shorter stacks of layers, smaller vocabularies."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from prunus.errors import GraphError
from prunus.graph.config import models_around, own_config, set_config_, set_depth_
from prunus.graph.connections import held_name
from prunus.graph.encoders import call_parts_
from prunus.plan import Factorize, KeepLayers, KeepVocabulary, Rebuild

_VOCABULARY_SIZES = ("vocab_size",)
_LAYER_NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number", "layer_num")
_PADDING, _SPECIAL = "pad_token_id", "_token_id"
_PADDING_NUMBERS = ("pad_id", "padding_idx")
_M = TypeVar("_M", bound=nn.Module)


def rebuild_(network: nn.Module, edits: Sequence[Rebuild]) -> None:
    """Apply edits in place, in order. Factors are zero: their values are filled in afterwards.

    Raises:
        GraphError: An edit names what is not there, or does not fit it.
    """
    for edit in edits:
        if isinstance(edit, Factorize):
            _factorize_(network, edit)
        elif isinstance(edit, KeepLayers):
            _keep_layers_(network, edit)
        else:
            _keep_rows_(network, edit)


def factorized(layer: nn.Module, edit: Factorize) -> nn.Sequential:
    """The chain that takes the place of a layer, with zero weights and the layer's own bias.

    Raises:
        GraphError: The layer is of another kind than the edit's form, or its ranks do not fit.
    """
    makers = {
        "linear": _linear_chain,
        "tucker-linear": _tucker_linear,
        "tucker-conv": _tucker_conv,
        "embedding": _embedding_chain,
    }
    with torch.device("meta"):  # no values are drawn that would be thrown away
        chain = makers[edit.form](layer, edit)
    like = layer.get_parameter("weight")
    chain.to(dtype=like.dtype).to_empty(device=like.device).train(layer.training)
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.zero_()
            parameter.requires_grad_(like.requires_grad)
        bias = getattr(layer, "bias", None)
        if isinstance(bias, torch.Tensor):
            own = chain[-1].get_parameter("bias")
            own.copy_(bias)
            own.requires_grad_(bias.requires_grad)
    return chain


def _factorize_(network: nn.Module, edit: Factorize) -> None:
    chain = factorized(submodule(network, edit.module), edit)
    for position, owner in ((0, edit.first), (-1, edit.last)):
        if owner:
            shared = submodule(network, owner)
            part = shared[position] if isinstance(shared, nn.Sequential) and len(shared) else None
            weight, own = getattr(part, "weight", None), chain[position].weight
            if not isinstance(weight, nn.Parameter):
                raise GraphError(
                    f"'{edit.module}' shares a factor of '{owner}', which has none; factorize "
                    f"'{owner}' before it"
                )
            if weight.shape != own.shape:
                raise GraphError(
                    f"'{edit.module}' shares a factor of '{owner}' of another shape; plan both anew"
                )
            chain[position].weight = weight
    _place(network, edit.module, chain)
    call_parts_(network, chain)  # else its place is asked for a weight


def _require(layer: nn.Module, kind: type[_M], edit: Factorize) -> _M:
    """The layer, known to be of the very kind that the form is for."""
    if type(layer) is not kind:
        raise GraphError(
            f"'{edit.module}' is a {type(layer).__name__}, the form {edit.form} is for {kind.__name__}"
        )
    return layer


def _linear_chain(module: nn.Module, edit: Factorize) -> nn.Sequential:
    layer = _require(module, nn.Linear, edit)
    (rank,) = edit.ranks
    return nn.Sequential(
        nn.Linear(layer.in_features, rank, bias=False),
        nn.Linear(rank, layer.out_features, bias=layer.bias is not None),
    )


def _tucker_linear(module: nn.Module, edit: Factorize) -> nn.Sequential:
    layer = _require(module, nn.Linear, edit)
    r_in, r_out = edit.ranks
    return nn.Sequential(
        nn.Linear(layer.in_features, r_in, bias=False),
        nn.Linear(r_in, r_out, bias=False),
        nn.Linear(r_out, layer.out_features, bias=layer.bias is not None),
    )


def _tucker_conv(module: nn.Module, edit: Factorize) -> nn.Sequential:
    layer = _require(module, nn.Conv2d, edit)
    if layer.groups != 1:
        raise GraphError(f"'{edit.module}' has groups={layer.groups}; only groups=1 is factorized")
    r_in, r_out = edit.ranks
    kernel = nn.Conv2d(
        r_in,
        r_out,
        layer.kernel_size,  # type: ignore[arg-type]  # torch keeps it as a tuple of any length
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        padding_mode=layer.padding_mode,
        bias=False,
    )
    return nn.Sequential(
        nn.Conv2d(layer.in_channels, r_in, 1, bias=False),
        kernel,
        nn.Conv2d(r_out, layer.out_channels, 1, bias=layer.bias is not None),
    )


def _embedding_chain(module: nn.Module, edit: Factorize) -> nn.Sequential:
    layer = _require(module, nn.Embedding, edit)
    if layer.max_norm is not None:
        raise GraphError(f"'{edit.module}' renormalizes its rows (max_norm); leave it whole")
    (rank,) = edit.ranks
    return nn.Sequential(
        nn.Embedding(
            layer.num_embeddings,
            rank,
            padding_idx=layer.padding_idx,
            sparse=layer.sparse,
        ),
        nn.Linear(rank, layer.embedding_dim, bias=False),
    )


def _keep_layers_(network: nn.Module, edit: KeepLayers) -> None:
    stack = submodule(network, edit.stack)
    if not isinstance(stack, nn.ModuleList | nn.Sequential) or len(stack) != edit.keep.size:
        raise GraphError(
            f"'{edit.stack}' is no stack of {edit.keep.size} layers; use the network of the plan"
        )
    keep = edit.keep.unpack()
    kept = [layer for layer, stays in zip(stack, keep, strict=True) if stays]
    if models_around(network, edit.stack):
        _renumber_(stack, kept)
    # In place: a subclass keeps its own forward, hooks and mode.
    stack._modules.clear()
    stack._modules.update({str(at): layer for at, layer in enumerate(kept)})
    set_depth_(network, edit.stack, keep)


def _renumber_(stack: Iterable[nn.Module], kept: Sequence[nn.Module]) -> None:
    """Tell layers of transformers their new places: its cache keeps keys and values by them.

    A number is a place if it is one in every layer that has it; others count what is in a layer.
    """
    found: dict[tuple[str, str], list[bool]] = {}
    for place, layer in enumerate(stack):
        for path, name, value in _numbers(layer):
            found.setdefault((path, name), []).append(value == place)
    for place, layer in enumerate(kept):
        for path, name, _ in list(_numbers(layer)):
            if all(found[path, name]):
                setattr(layer.get_submodule(path), name, place)


def _numbers(layer: nn.Module) -> Iterator[tuple[str, str, int]]:
    """What a layer, and what is in it, are told by number: path within it, name and number."""
    for path, module in layer.named_modules():
        for name in _LAYER_NUMBERS:
            value = vars(module).get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                yield path, name, value


def _keep_rows_(network: nn.Module, edit: KeepVocabulary) -> None:
    at = np.flatnonzero(edit.keep.unpack())
    for name in edit.tables:
        path, _, leaf = name.rpartition(".")
        table = submodule(network, path)
        weight = getattr(table, leaf, None)
        if not isinstance(weight, nn.Parameter) or len(weight) != edit.keep.size:
            raise GraphError(
                f"'{name}' is no table of {edit.keep.size} tokens; use the network of the plan"
            )
        rows = weight.detach().index_select(0, torch.from_numpy(at).to(weight.device))
        smaller = nn.Parameter(rows.clone(), requires_grad=weight.requires_grad)
        for module in network.modules():  # where it is tied, too
            for own, value in list(module._parameters.items()):
                if value is weight:
                    module._parameters[own] = smaller
                    held = module._buffers.get(held_name(own))
                    if held is not None:
                        module._buffers[held_name(own)] = held[torch.from_numpy(at).to(held.device)]
        padding = getattr(table, "padding_idx", None)
        if padding is not None:
            table.padding_idx = _rank(edit, int(padding))  # type: ignore[assignment]
            _renumber_padding_(network, int(padding), edit)
    _set_config_(
        network,
        {
            **dict.fromkeys(_VOCABULARY_SIZES, (edit.keep.size, len(at))),
            **_special(network, edit),
        },
    )


def _renumber_padding_(network: nn.Module, old: int, edit: KeepVocabulary) -> None:
    """Modules that tell padding by its number know the new one."""
    for module in network.modules():
        for name in _PADDING_NUMBERS:
            if not isinstance(module, nn.Embedding) and vars(module).get(name) == old:
                setattr(module, name, _rank(edit, old))


def _special(network: nn.Module, edit: KeepVocabulary) -> dict[str, tuple[int, int]]:
    """New numbers of the special pieces that a config names; the padding must stay."""
    config, keep = vars(network).get("config"), edit.keep.unpack()
    found = {}
    for name in vars(config) if config is not None else ():
        old = getattr(config, name)
        if not name.endswith(_SPECIAL) or not isinstance(old, int):
            continue
        if name == _PADDING or (0 <= old < len(keep) and keep[old]):
            found[name] = (old, _rank(edit, old))
    return found


def _rank(edit: KeepVocabulary, piece: int) -> int:
    """The new number of a piece.

    Raises:
        GraphError: It does not stay.
    """
    keep = edit.keep.unpack()
    if not 0 <= piece < len(keep) or not keep[piece]:
        raise GraphError(f"the plan drops piece {piece}, which pads texts; keep it")
    return int(keep[:piece].sum())


def _set_config_(network: nn.Module, changes: dict[str, tuple[int, int]]) -> None:
    """Give the config of a Hugging Face network new numbers where it holds the old ones."""
    config = own_config(network)
    if config is not None:
        new = {k: new for k, (old, new) in changes.items() if getattr(config, k, None) == old}
        set_config_(network, new)


def submodule(network: nn.Module, path: str) -> nn.Module:
    """The module that a plan names.

    Raises:
        GraphError: There is none.
    """
    try:
        return network.get_submodule(path)
    except AttributeError as error:
        raise GraphError(
            f"the network has no module '{path}'; use the network of the plan"
        ) from error


def _place(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module where another was, under all its names."""
    old = network.get_submodule(path)
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = module
