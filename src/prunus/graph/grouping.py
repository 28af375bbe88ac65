"""Groups from a walk's findings: what can only be cut together, named, and what is left whole."""

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import nn

from prunus.errors import InputError
from prunus.graph.findings import Findings
from prunus.graph.labels import IGNORED, KERNEL, LOOKUP, SINGLE, Algebra
from prunus.graph.units import ALIGNED, Group, UnitAxis


def groups_of(algebra: Algebra, findings: Findings, network: nn.Module) -> list[Group]:
    """Classes that touch the same axes form a group; its units are in order of its first axis."""
    atoms = algebra.atoms
    parameters = {name for name, _ in network.named_parameters()}
    touched: dict[int, list[tuple[str, int]]] = {}
    for axis, ids in findings.axes.items():
        for root in np.unique(atoms.find(ids)).tolist():
            touched.setdefault(root, []).append(axis)
    reduced = {r for ids in findings.reduced for r in np.unique(atoms.find(ids)).tolist()}
    aligned = {r for ids in findings.aligned for r in np.unique(atoms.find(ids)).tolist()}
    members: dict[tuple[Any, ...], list[int]] = {}
    for root, axes in touched.items():
        if any(tensor in parameters for tensor, _ in axes):
            members.setdefault((tuple(axes), atoms.reason(root)), []).append(root)
    groups: list[Group] = []
    names: set[str] = set()
    for (axes, reason), roots in members.items():
        if reason in (KERNEL, LOOKUP):
            continue
        first = atoms.find(findings.axes[axes[0]])
        _, at = np.unique(first, return_index=True)
        mine_roots = set(roots)
        order = [r for r in first[np.sort(at)].tolist() if r in mine_roots]
        unit = np.full(atoms.size, -1, dtype=np.int64)
        unit[order] = np.arange(len(order))
        mine = []
        for axis in axes:
            units = unit[atoms.find(findings.axes[axis])]
            role: Literal["in", "out"] = "in" if axis in findings.contracted else "out"
            mine.append(UnitAxis(axis[0], axis[1], units, role))
        refused = SINGLE if not reason and len(order) < 2 else reason
        if reason and all(a.role == "in" for a in mine):
            continue
        name = _unique_name(_producer(mine, parameters), names)
        over = any(r in reduced for r in roots)
        multiple = ALIGNED if any(r in aligned for r in roots) else 1
        group = Group(name, len(order), tuple(mine), refused, aligned=multiple, reduced=over)
        groups.append(group)
    return groups


def _producer(axes: Sequence[UnitAxis], parameters: set[str]) -> str:
    made = [a.tensor for a in axes if a.role == "out" and a.tensor in parameters]
    weights = [name for name in made if name.endswith("weight")]
    of_gates = [name for name in made if name.rpartition(".")[2].startswith("weight_")]
    name = (weights or of_gates or [axes[0].tensor])[0]
    layer, _, leaf = name.rpartition(".")
    return layer if layer and (leaf == "weight" or name in of_gates) else name


def _unique_name(name: str, taken: set[str]) -> str:
    unique, k = name, 2
    while unique in taken:
        unique, k = f"{name}#{k}", k + 1
    taken.add(unique)
    return unique


def _with_containers(tensor: str) -> list[str]:
    """A tensor's name, its layer's, and those of all modules around it."""
    parts = tensor.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def named_by(ignore: Sequence[str], network: nn.Module) -> frozenset[str]:
    """Modules, parameters and buffers that globs match, or whose surroundings they match.

    Raises:
        InputError: A glob matches no module or parameter.
    """
    modules = [name for name, _ in network.named_modules(remove_duplicate=False)]
    tensors = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    buffers = [name for name, _ in network.named_buffers(remove_duplicate=False)]
    for pattern in ignore:
        if not fnmatch.filter(modules, pattern) and not fnmatch.filter(tensors, pattern):
            raise InputError(
                f"ignore pattern '{pattern}' matches no module or parameter; names look like "
                f"{', '.join(name for name in modules[1:4])}"
            )
    return frozenset(
        name
        for name in (*modules, *tensors, *buffers)
        if any(fnmatch.fnmatch(w, p) for w in _with_containers(name) for p in ignore)
    )


def left_whole(group: Group, named: frozenset[str]) -> Group:
    """A group, refused where the user left out what makes its channels."""
    if not any(axis.role == "out" and axis.tensor in named for axis in group.axes):
        return group
    return replace(group, refused=group.refused or IGNORED, ignored=True)
