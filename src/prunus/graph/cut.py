"""Cut a network along a plan: dumb, without opinions, without random numbers."""

import copy
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from prunus.errors import GraphError, PlanMismatchError
from prunus.graph.config import sync_config_
from prunus.graph.connections import (
    held_connections,
    held_name,
    hold_connections_,
    register_held,
    require_fit,
)
from prunus.graph.provenance import read_attribute, write_attribute
from prunus.plan import (
    BoolArray,
    KeepChannels,
    NetworkShape,
    Plan,
    ReindexBuffer,
    SetAttribute,
    ZeroConnections,
)


def network_shape(network: nn.Module) -> NetworkShape:
    """Names and shapes of all parameters and buffers of the state dict; tied ones once."""
    held = {held_name(name) for name in held_connections(network)}
    named = [*network.named_parameters(), *network.named_buffers()]
    return NetworkShape(tensors={n: tuple(t.shape) for n, t in named if n not in held})


def cut(
    network: nn.Module, plan: Plan, tensors: Mapping[str, torch.Tensor] | None = None
) -> nn.Module:
    """Apply a plan to a copy of a network.

    Args:
        network: The network the plan was made for; it is not touched.
        plan: What stays.
        tensors: New values by name, for edits whose weights are not a selection of old ones.

    Returns:
        The smaller network, in the same training mode, on the same device.

    Raises:
        PlanMismatchError: The network has other tensors than the plan's source.
        GraphError: The result has other shapes than the plan says.
    """
    plan.source.require(network_shape(network), "the plan")
    smaller = copy.deepcopy(network)
    for edit in plan.edits:
        if isinstance(edit, ReindexBuffer):
            _renumber_(smaller, edit)
    for edit in plan.edits:
        if isinstance(edit, ZeroConnections):
            _zero_(smaller, edit)
    _slice_(smaller, _keep_by_axis(plan))
    for edit in plan.edits:
        if isinstance(edit, SetAttribute):
            module = smaller.get_submodule(edit.module)
            now = read_attribute(module, edit.attribute)
            if now != edit.before:
                raise PlanMismatchError(
                    f"the plan is for another network: '{edit.attribute}' of '{edit.module}' should "
                    f"be {edit.before} but is {now}; use the arguments that the plan was made for"
                )
            write_attribute(module, edit.attribute, edit.after)
    for module in smaller.modules():
        _sync_sizes_(module)
    sync_config_(smaller, network)
    if tensors:
        _load_(smaller, tensors)
    plan.result.require(network_shape(smaller), "the plan's result")
    hold_connections_(smaller)
    return smaller


def _keep_by_axis(plan: Plan) -> dict[str, dict[int, BoolArray]]:
    """Kept positions of each dim of each tensor: what every group that touches it keeps."""
    keep: dict[str, dict[int, BoolArray]] = defaultdict(dict)
    for edit in plan.edits:
        if isinstance(edit, KeepChannels):
            for axis in edit.axes:
                mine = axis.keep.unpack()
                before = keep[axis.tensor].get(axis.dim)
                keep[axis.tensor][axis.dim] = mine if before is None else mine & before
    return keep


def _owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return network.get_submodule(path), leaf


def _slice_(network: nn.Module, keep: Mapping[str, Mapping[int, BoolArray]]) -> None:
    """Replace every cut tensor, also where it is tied under other names."""
    tensors = dict([*network.named_parameters(), *network.named_buffers()])
    replaced: dict[int, torch.Tensor] = {}
    for name, dims in [*keep.items(), *((held_name(n), d) for n, d in keep.items())]:
        tensor = tensors.get(name)
        if tensor is None:  # no mask of held connections beside this one
            continue
        data = tensor.detach()
        for dim, stays in dims.items():
            index = torch.from_numpy(np.flatnonzero(stays)).to(data.device)
            data = data.index_select(dim, index)
        data = data.clone(memory_format=torch.preserve_format)
        if isinstance(tensor, nn.Parameter):
            data = nn.Parameter(data, requires_grad=tensor.requires_grad)
        replaced[id(tensor)] = data
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for leaf, value in table.items():
                if value is not None and id(value) in replaced:
                    table[leaf] = replaced[id(value)]  # type: ignore[assignment]


def _renumber_(network: nn.Module, edit: ReindexBuffer) -> None:
    owner, leaf = _owner(network, edit.buffer)
    buffer = owner._buffers[leaf]
    if buffer is None:
        raise GraphError(f"the plan renumbers '{edit.buffer}', which is not a buffer")
    stays = torch.from_numpy(edit.keep.unpack()).to(buffer.device)
    # A position that goes away is read only by entries that go away too: their value is never used.
    rank = torch.where(stays, stays.long().cumsum(0) - 1, 0)
    owner._buffers[leaf] = rank[buffer.long()].to(buffer.dtype)


def _zero_(network: nn.Module, edit: ZeroConnections) -> None:
    weight = dict(network.named_parameters()).get(edit.tensor)
    require_fit(edit, None if weight is None else weight.shape)
    owner, leaf = _owner(network, edit.tensor)
    weight = owner.get_parameter(leaf)
    mask = torch.from_numpy(edit.keep.unpack().reshape(edit.shape)).to(weight.device)
    mask = mask.reshape(mask.shape + (1,) * (weight.dim() - mask.dim()))
    with torch.no_grad():
        weight.mul_(mask.to(weight.dtype))
    register_held(owner, leaf, mask.expand_as(weight).clone())


def _load_(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    own = dict([*network.named_parameters(), *network.named_buffers()])
    for name, value in tensors.items():
        if name not in own or own[name].shape != value.shape:
            shape = list(own[name].shape) if name in own else "no such tensor"
            raise GraphError(
                f"tensor '{name}' {list(value.shape)} does not fit the cut network ({shape})"
            )
        with torch.no_grad():
            own[name].copy_(value)


def _sync_sizes_(module: nn.Module) -> None:
    """Sizes that a layer of ``torch.nn`` keeps beside its tensors."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        running = getattr(module, "running_mean", None)
        if isinstance(module, nn.modules.batchnorm._NormBase) and running is not None:
            module.num_features = running.shape[0]
        return
    if isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.num_embeddings, module.embedding_dim = weight.shape
    else:
        _sync_channels_(module, weight)


def _sync_channels_(module: nn.Module, weight: torch.Tensor) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
