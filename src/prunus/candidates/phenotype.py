"""The network that a plan makes, as a hash: plans that make the same network are one candidate."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from prunus.plan import (
    BoolArray,
    KeepChannels,
    Plan,
    ReindexBuffer,
    SetAttribute,
    ZeroConnections,
)


def phenotype(plan: Plan, tensors: Mapping[str, Tensor]) -> str:
    """Hash of what stays of which tensor, in hex.

    Connections count only where they make a difference: not in slices that are cut anyway, not where
    the weight is zero already.

    Args:
        plan: For a network with these tensors.
        tensors: Its parameters and buffers by name.
    """
    keep: dict[tuple[str, int], BoolArray] = {}
    for edit in plan.edits:
        if isinstance(edit, KeepChannels):
            for axis in edit.axes:
                mine = axis.keep.unpack()
                at = axis.tensor, axis.dim
                keep[at] = mine & keep[at] if at in keep else mine
    lines = sorted([*_lines(plan), *_connections(plan, tensors, keep)])
    lines += [
        f"{t} {d} {np.packbits(stays).tobytes().hex()}"
        for (t, d), stays in sorted(keep.items())
        if not stays.all()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _lines(plan: Plan) -> Iterator[str]:
    for edit in plan.edits:
        if isinstance(edit, SetAttribute):
            yield f"{edit.module} {edit.attribute} {edit.after}"
        elif isinstance(edit, ReindexBuffer):
            yield f"{edit.buffer} {edit.keep.packed}"


def _connections(
    plan: Plan, tensors: Mapping[str, Tensor], keep: Mapping[tuple[str, int], BoolArray]
) -> Iterator[str]:
    zero: dict[str, BoolArray] = {}
    for edit in plan.edits:
        if isinstance(edit, ZeroConnections):
            mask = edit.keep.unpack().reshape(edit.shape)
            shape = tuple(tensors[edit.tensor].shape)
            mask = np.broadcast_to(
                mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape
            )
            before = zero.get(edit.tensor)
            zero[edit.tensor] = ~mask if before is None else before | ~mask
    for name, zeroed in zero.items():
        differs = zeroed & (tensors[name].detach() != 0).cpu().numpy()
        for dim in range(differs.ndim):
            if (name, dim) in keep:
                differs = np.compress(keep[name, dim], differs, axis=dim)
        if differs.any():
            yield f"{name} zero {np.packbits(differs).tobytes().hex()}"
