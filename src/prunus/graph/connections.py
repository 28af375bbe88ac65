"""Connections held at zero: single weights or kernels that stay zero through any later training.

The mask lies beside the weight as a non-persistent buffer, so it is sliced and copied with the
network and never saved twice (the zeros in the weight are the truth). Training keeps it by zeroing
the gradient where the mask is zero: a weight that is zero and has no gradient stays zero under
momentum, weight decay and Adam alike. Hooks survive neither ``copy.deepcopy`` nor pickling; whoever
trains a copy calls ``hold_connections_`` first, as Prunus's own training does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from prunus.errors import GraphError
from prunus.graph.units import Group
from prunus.plan import BoolArray, ZeroConnections

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Layers that scale and shift channels: they connect none."""

_SUFFIX = "_prunus_held"


def register_held(module: nn.Module, leaf: str, mask: torch.Tensor) -> None:
    """Lay a boolean mask (same shape as the weight; False = held at zero) beside a weight."""
    before = getattr(module, leaf + _SUFFIX, None)
    mask = mask if before is None else mask & before
    module.register_buffer(leaf + _SUFFIX, mask, persistent=False)


def held_connections(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameter name to mask, for all parameters with held connections."""
    return {
        name.removesuffix(_SUFFIX): mask
        for name, mask in network.named_buffers()
        if name.endswith(_SUFFIX)
    }


def hold_connections_(network: nn.Module) -> None:
    """Zero what is held, now and in the gradient of every later backward pass."""
    for path, mask in held_connections(network).items():
        owner, _, leaf = path.rpartition(".")
        module = network.get_submodule(owner)
        weight = module.get_parameter(leaf)
        with torch.no_grad():
            weight.mul_(mask.to(weight.dtype))
        if not any(isinstance(hook, _Silence) for hook in (weight._backward_hooks or {}).values()):
            trains = weight.requires_grad
            weight.requires_grad_(True)  # a frozen weight takes no hook, and may be trained later
            weight.register_hook(_Silence(module, leaf))  # type: ignore[no-untyped-call]
            weight.requires_grad_(trains)


def held_name(tensor: str) -> str:
    """Name of the buffer that holds a parameter's mask."""
    return tensor + _SUFFIX


def require_fit(connections: ZeroConnections, shape: Sequence[int] | None) -> None:
    """Refuse connections of another weight than the network's.

    Raises:
        GraphError: There is no such tensor, or its shape is another.
    """
    if shape is None:
        raise GraphError(f"connections of '{connections.tensor}': the network has no such tensor")
    wanted = tuple(shape[:2]) if connections.level == "kernel" else tuple(shape)
    if tuple(connections.shape) != wanted:
        raise GraphError(
            f"connections of '{connections.tensor}' have the shape {list(connections.shape)}, "
            f"its {connections.level}s are {list(wanted)}"
        )


def unread_units(groups: Iterable[Group], masks: Mapping[str, BoolArray]) -> dict[str, BoolArray]:
    """Units that nothing reads where connections are zero, by group; groups without any left out.

    A unit whose every consuming slice is zero changes no output, unless a normalization runs over
    its channel: such groups are left alone.

    Args:
        groups: That may lose units.
        masks: Whether each connection stays, by weight, in its shape or its first two dims; weights
            left out stay whole.
    """
    found = {}
    for group in groups:
        readers = [axis for axis in group.axes if axis.role == "in"]
        if group.reduced or not readers or any(axis.tensor not in masks for axis in readers):
            continue
        read = np.zeros(group.units, dtype=bool)
        for axis in readers:
            alive = np.moveaxis(masks[axis.tensor], axis.dim, 0).reshape(len(axis.units), -1).any(1)
            read[axis.units[alive & (axis.units >= 0)]] = True
        if not read.all():
            found[group.name] = ~read
    return found


def narrow_(kept: dict[str, BoolArray], group: Group, useful: BoolArray) -> bool:
    """Take units of no use out of those that are kept, but for as many as the group's limits ask to stay.

    Args:
        kept: Units by group, at legal widths; groups left out are whole. Changed.
        group: Whose.
        useful: One of each unit.

    Returns:
        Whether any went.
    """
    before = kept.get(group.name, np.ones(group.units, dtype=bool))
    if useful[before].all():
        return False
    left = before & useful
    count = int(left.sum())
    spare = np.flatnonzero(before & ~useful)
    left[spare[: group.width(count) - count]] = True
    kept[group.name] = left
    return bool((left != before).any())


def drop_unread_(
    kept: dict[str, BoolArray], groups: Sequence[Group], masks: Mapping[str, BoolArray]
) -> None:
    """Take units that nothing reads out of those that are kept; what is cut reads nothing itself.

    Args:
        kept: As for ``narrow_``; changed.
        groups: That may lose units.
        masks: As for ``unread_units``; changed.
    """
    narrowed = True
    while narrowed:
        _drop_connections_(masks, groups, kept)
        unread = unread_units(groups, masks)
        found = [narrow_(kept, g, ~unread[g.name]) for g in groups if g.name in unread]
        narrowed = any(found)


def _drop_connections_(
    masks: Mapping[str, BoolArray], groups: Iterable[Group], kept: Mapping[str, BoolArray]
) -> None:
    """Take the connections of units that are cut out of masks."""
    for group in groups:
        stays = kept.get(group.name)
        if stays is None:
            continue
        for axis in group.axes:
            if axis.tensor in masks and axis.dim < masks[axis.tensor].ndim:
                gone = (axis.units >= 0) & ~stays[axis.units]
                np.moveaxis(masks[axis.tensor], axis.dim, 0)[gone] = False


@dataclass(frozen=True, eq=False)
class _Silence:
    """Hook of a weight: no gradient where the mask beside it is False."""

    module: nn.Module
    leaf: str

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        mask: torch.Tensor = getattr(self.module, self.leaf + _SUFFIX)
        return gradient * mask.to(gradient)
