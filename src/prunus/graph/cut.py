"""Cut a network along a plan: dumb, without opinions, without random numbers."""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.errors import GraphError, InputError, PlanMismatchError
from prunus.graph.attention import free_heads_, sync_heads_
from prunus.graph.attributes import read_attribute, write_attribute
from prunus.graph.computed import weight_of
from prunus.graph.config import sync_config_
from prunus.graph.connections import (
    held_connections,
    held_name,
    hold_connections_,
    register_held,
    require_fit,
)
from prunus.graph.encoders import pad_plainly_
from prunus.graph.inputs import check_network
from prunus.graph.kept import may_keep, refresh_
from prunus.graph.overlap import require_tied_by_name
from prunus.graph.rebuild import rebuild_, submodule
from prunus.plan import (
    Axis,
    BoolArray,
    IntArray,
    KeepChannels,
    NetworkShape,
    Plan,
    Rebuild,
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
        InputError: One is no network, or the other no plan.
        PlanMismatchError: The network has other tensors or numbers than those the plan was made for,
            or the plan names what is not there.
        GraphError: The result has other shapes than the plan says.
    """
    check_network(network, values=False)
    if not isinstance(plan, Plan):
        raise InputError(
            f"plan is a {type(plan).__name__}; give one that Trace.plan made or Plan.load read"
        )
    plan.source.require(network_shape(network), "the plan")
    smaller = _cut(network, plan, tensors)
    plan.result.require(network_shape(smaller), "the plan's result")
    hold_connections_(smaller)
    return smaller


def plan_of(network: nn.Module, edits: Sequence[Rebuild]) -> Plan:
    """The plan of edits that replace modules, for this network.

    Raises:
        GraphError: An edit does not fit the network.
        InputError: Parameters of the network share memory.
    """
    require_tied_by_name(network)
    shape = network_shape(network)
    if not edits:
        return Plan(source=shape, result=shape)
    drawn = Plan(source=shape, result=shape, edits=tuple(edits))
    result = network_shape(_cut(network, drawn, None))
    return drawn.model_copy(update={"result": result})


def _cut(network: nn.Module, plan: Plan, tensors: Mapping[str, torch.Tensor] | None) -> nn.Module:
    """The smaller network, not compared with what the plan says of it."""
    smaller = copy.deepcopy(network)
    rebuild_(smaller, plan.rebuilds)
    for edit in plan.edits:
        if isinstance(edit, ZeroConnections):
            _hold_(smaller, edit)
    tensors_now = dict([*smaller.named_parameters(), *smaller.named_buffers()])
    changed = kept_slices(tensors_now, plan)
    _replace_(smaller, {id(tensors_now[name]): value for name, value in changed.items()})
    set_attributes_(smaller, plan)
    for module in smaller.modules():
        sync_sizes_(module)
    free_heads_(smaller, where_needed=True)
    pad_plainly_(smaller)
    sync_config_(smaller, network)
    if tensors:
        _load_(smaller, tensors)
    refresh_(may_keep(smaller))
    return smaller


def kept_slices(tensors: Mapping[str, torch.Tensor], plan: Plan) -> dict[str, torch.Tensor]:
    """What a plan makes of every tensor it changes; the given ones are not touched.

    Args:
        tensors: Parameters and buffers by name, masks of held connections among them.
        plan: For a network with these tensors.

    Returns:
        New values by name: gathered, renumbered, zeroed. A view of the old storage where all that
        stays is one contiguous range and nothing else changes.

    Raises:
        GraphError: The plan names a tensor that is not there, or is not what the plan takes it for.
    """
    _require_axes(tensors, plan)
    changed: dict[str, torch.Tensor] = {}
    for edit in plan.edits:
        if isinstance(edit, ReindexBuffer):
            changed[edit.buffer] = _renumbered(tensors.get(edit.buffer), edit)
    for edit in plan.edits:
        if isinstance(edit, ZeroConnections):
            weight = changed.get(edit.tensor, tensors.get(edit.tensor))
            changed[edit.tensor] = _zeroed(weight, edit)
    keep = _keep_by_axis(plan)
    for name, dims in [*keep.items(), *((held_name(n), d) for n, d in keep.items())]:
        if name not in tensors:  # no mask of held connections beside this one
            continue
        value = changed.get(name, tensors[name]).detach()
        for dim, stays in dims.items():
            value = _gathered(value, dim, np.flatnonzero(stays))
        changed[name] = value
    return changed


def _require_axes(tensors: Mapping[str, torch.Tensor], plan: Plan) -> None:
    """Refuse channels of what is not there, and flags that are not as many as the channels."""
    for edit in plan.edits:
        if not isinstance(edit, KeepChannels):
            continue
        for axis in edit.axes:
            found = _misfit(tensors.get(axis.tensor), axis)
            if found:
                raise PlanMismatchError(
                    f"the plan tells of {axis.keep.size} positions of '{axis.tensor}', dim {axis.dim}, "
                    f"which stay (group '{edit.group}'), but {found}: it is damaged or for another "
                    "network; trace the network and plan anew"
                )


def _misfit(tensor: torch.Tensor | None, axis: Axis) -> str:
    """Why a tensor cannot lose positions as an axis says; "" where it can."""
    if tensor is None:
        return "there is no such tensor"
    if axis.dim >= tensor.dim():
        return f"its shape is {list(tensor.shape)}"
    size = tensor.shape[axis.dim]
    return "" if size == axis.keep.size else f"it has {size} there"


def _gathered(tensor: torch.Tensor, dim: int, at: IntArray) -> torch.Tensor:
    """The positions ``at`` (ascending) of one dim."""
    if at.size and at[-1] - at[0] + 1 == at.size:
        return tensor.narrow(dim, int(at[0]), at.size)
    return tensor.index_select(dim, torch.from_numpy(at).to(tensor.device))


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


def _replace_(network: nn.Module, changed: Mapping[int, torch.Tensor]) -> None:
    """Replace tensors by identity, also where they are tied under other names."""
    fresh: dict[int, torch.Tensor] = {}
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for leaf, value in table.items():
                if value is None or id(value) not in changed:
                    continue
                if id(value) not in fresh:
                    data = changed[id(value)].clone(memory_format=torch.preserve_format)
                    if isinstance(value, nn.Parameter):
                        data = nn.Parameter(data, requires_grad=value.requires_grad)
                    fresh[id(value)] = data
                table[leaf] = fresh[id(value)]  # type: ignore[assignment]


def set_attributes_(network: nn.Module, plan: Plan) -> None:
    """Set the whole numbers on modules that follow a cut.

    Raises:
        PlanMismatchError: A number is not what it was when the plan was made.
    """
    for edit in plan.edits:
        if isinstance(edit, SetAttribute):
            module = submodule(network, edit.module)
            now = read_attribute(module, edit.attribute)
            if now != edit.before:
                where = edit.module or type(network).__name__
                raise PlanMismatchError(
                    f"the plan is for another network: '{edit.attribute}' of '{where}' should "
                    f"be {edit.before} but is {'no whole number' if now is None else now}; use the "
                    "class and the arguments that the plan was made for"
                )
            write_attribute(module, edit.attribute, edit.after)


def _renumbered(buffer: torch.Tensor | None, edit: ReindexBuffer) -> torch.Tensor:
    if buffer is None:
        raise GraphError(f"the plan renumbers '{edit.buffer}', which is not a buffer")
    stays = torch.from_numpy(edit.keep.unpack()).to(buffer.device)
    if not buffer.is_meta and bool(((buffer < -stays.numel()) | (buffer >= stays.numel())).any()):
        raise PlanMismatchError(
            f"the plan renumbers {stays.numel()} positions in '{edit.buffer}', which holds "
            f"{int(buffer.min())} to {int(buffer.max())}: it is for another network; use the class and "
            "the arguments that the plan was made for"
        )
    # A position that goes away is read only by entries that go away too: their value is never used.
    rank = torch.where(stays, stays.long().cumsum(0) - 1, 0)
    return rank[buffer.long()].to(buffer.dtype)


def _mask(weight: torch.Tensor, edit: ZeroConnections) -> torch.Tensor:
    """Booleans in the weight's shape: False where a connection is zero."""
    mask = torch.from_numpy(edit.keep.unpack().reshape(edit.shape)).to(weight.device)
    return mask.reshape(mask.shape + (1,) * (weight.dim() - mask.dim())).expand_as(weight)


def _zeroed(weight: torch.Tensor | None, edit: ZeroConnections) -> torch.Tensor:
    require_fit(edit, None if weight is None else weight.shape)
    if weight is None:
        raise GraphError(f"the plan zeroes connections of '{edit.tensor}', which is not there")
    return weight.detach() * _mask(weight, edit).to(weight.dtype)


def _hold_(network: nn.Module, edit: ZeroConnections) -> None:
    weight = dict(network.named_parameters()).get(edit.tensor)
    require_fit(edit, None if weight is None else weight.shape)
    path, _, leaf = edit.tensor.rpartition(".")
    owner = network.get_submodule(path)
    register_held(owner, leaf, _mask(owner.get_parameter(leaf), edit).clone())


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


def sync_sizes_(module: nn.Module) -> None:
    """Sizes that a layer of ``torch.nn`` keeps beside its tensors."""
    weight = weight_of(module)
    if weight is None:
        _sync_others_(module)
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


def _sync_others_(module: nn.Module) -> None:
    """Of a layer without a tensor of the name ``weight``."""
    running = getattr(module, "running_mean", None)
    if isinstance(module, nn.modules.batchnorm._NormBase) and running is not None:
        module.num_features = running.shape[0]
    elif isinstance(module, nn.MultiheadAttention):
        sync_heads_(module)
    elif isinstance(module, nn.RNNCellBase):
        module.input_size = module.weight_ih.shape[1]
        module.hidden_size = module.weight_hh.shape[1]
    elif isinstance(module, nn.RNNBase):
        weights: dict[str, Any] = module._parameters  # slices of them, in a candidate
        module.input_size = weights["weight_ih_l0"].shape[1]


def _sync_channels_(module: nn.Module, weight: torch.Tensor) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
