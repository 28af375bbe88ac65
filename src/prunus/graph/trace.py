"""Trace a network: which channels are coupled to which, found by watching one forward pass."""

import copy
import fnmatch
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from prunus.errors import CertificateError, GraphError, InputError, PrunusError, first_line
from prunus.graph import (
    rules_contract,
    rules_elementwise,
    rules_index,
    rules_pointwise,
    rules_recurrent,
    rules_reduce,
    rules_shuffle,
    rules_view,
)
from prunus.graph.attention import free_heads_
from prunus.graph.certify import certify
from prunus.graph.culprits import culprits
from prunus.graph.cut import cut, network_shape
from prunus.graph.encoders import pad_plainly_
from prunus.graph.findings import Findings
from prunus.graph.groups import Trace
from prunus.graph.inputs import (
    Inputs,
    call,
    check_inputs,
    check_network,
    first_sample,
    output_tensors,
)
from prunus.graph.kept import may_keep, refresh_
from prunus.graph.labels import IGNORED, KERNEL, LOOKUP, OUTPUT, SINGLE, Algebra
from prunus.graph.provenance import SizeWatch, plant
from prunus.graph.settle import note_numbers, settle
from prunus.graph.units import ALIGNED, Group, UnitAxis
from prunus.graph.walk import Walk
from prunus.plan import BoolArray
from prunus.sound import require_sound

# The rules register themselves; naming the modules here keeps the imports from looking unused.
RULE_MODULES = (
    rules_contract,
    rules_elementwise,
    rules_index,
    rules_pointwise,
    rules_recurrent,
    rules_reduce,
    rules_shuffle,
    rules_view,
)


def trace(
    network: nn.Module,
    example_inputs: Any,
    *,
    ignore: Sequence[str] = (),
    min_units: int = 1,
    round_to: int = 1,
    verify: bool = True,
) -> Trace:
    """Find the coupled channel groups of a network.

    Args:
        network: Any module; it is not touched.
        example_inputs: A real batch (two samples or more, so that train mode can be checked): a
            tensor, a tuple of positional or a dict of keyword arguments.
        ignore: Glob patterns of module or parameter names whose outputs stay whole.
        min_units: Fewest units that must stay in each group.
        round_to: Kept channels are a multiple of this, for hardware that wants it.
        verify: Cut one channel of every group as a probe, and refuse by name what fails.

    Returns:
        The groups in forward order, those that cannot be cut with the reason.

    Raises:
        InputError: Unusable example inputs or settings, a pattern that matches nothing, parameters
            that share memory, or weights that are not finite.
        GraphError: The network does not run on the example inputs.
    """
    if torch.is_inference_mode_enabled():
        raise InputError(
            "nothing can be watched inside torch.inference_mode(): call this outside of it, or use "
            "torch.no_grad()"
        )
    check_network(network, values=verify)
    if verify:
        require_sound(network)
    _require_followed(network)
    _require_tied_by_name(network)
    inputs = check_inputs(example_inputs)
    numbers: dict[str, object] = {"min_units": min_units, "round_to": round_to}
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; give a whole number of at least 1")
    if isinstance(ignore, str):
        raise InputError(f"ignore is the text {ignore!r}; give a list of patterns: [{ignore!r}]")
    algebra, findings = _walk(network, inputs)
    settle(algebra, findings)
    groups = _groups(algebra, findings, network)
    groups = [replace(g, min_units=min_units, round_to=round_to) for g in groups]
    named = _named(ignore, network)
    groups = [_left_whole(group, named) for group in groups]
    algebra.atoms.frozen = True
    found = Trace(
        shape=network_shape(network),
        groups=tuple(groups),
        example_inputs=inputs,
        findings=findings,
        atoms=algebra.atoms,
        parameters={n: tuple(p.shape) for n, p in network.named_parameters()},
        stored=_stored(network),
        ignored=named,
    )
    return _probe(network, found) if verify else found


def _require_followed(network: nn.Module) -> None:
    """Refuse modules that no forward pass can be watched in.

    Raises:
        InputError: One is scripted.
    """
    for path, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"'{path or type(network).__name__}' is scripted (torch.jit), and cannot be followed "
                "or cut; give the module that it was made from"
            )


def _require_tied_by_name(network: nn.Module) -> None:
    """Refuse two parameters over one memory: a cut would part them, and a file holds both.

    Raises:
        InputError: There are two.
    """
    known: dict[tuple[int, int, torch.Size], str] = {}
    for name, tensor in network.named_parameters():
        if tensor.is_meta or not tensor.numel() or tensor.layout != torch.strided:
            continue
        storage = tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
        other = known.setdefault((*storage, tensor.shape), name)
        if other != name:
            raise InputError(
                f"parameters '{other}' and '{name}' share their memory without being one parameter: "
                "tie them (assign the parameter itself, not its .data), or clone one"
            )


def _stored(network: nn.Module) -> dict[str, int]:
    """Bytes per element of what a file of this network holds, tied tensors once."""
    saved = network.state_dict().keys()
    named = [*network.named_parameters(), *network.named_buffers()]
    return {name: tensor.element_size() for name, tensor in named if name in saved}


def _walk(network: nn.Module, inputs: Inputs) -> tuple[Algebra, Findings]:
    """Walk with all that can be followed; where that fails, leave whole what may stand in the way.

    Modules may tell one another by an object that looks like settings, or ask for the very class of an
    attention.
    """
    attends = any(type(module) is nn.MultiheadAttention for module in network.modules())
    for free, settings in ((True, True), (True, False), (False, True)):
        if attends or not free:
            with suppress(GraphError):
                return _walk_once(network, inputs, settings=settings, free=free)
    return _walk_once(network, inputs, settings=False, free=False)


def _walk_once(
    network: nn.Module, inputs: Inputs, *, settings: bool, free: bool
) -> tuple[Algebra, Findings]:
    algebra, findings = Algebra(), Findings()
    try:
        planted = copy.deepcopy(network).eval()
    except Exception as error:  # a module's own __deepcopy__ may raise anything
        raise GraphError(
            f"the network cannot be copied ({first_line(error)}): a module holds a tensor that was "
            "computed from others (torch.nn.utils.prune, old weight_norm, kept activations), or an "
            "open resource; remove it, as torch.nn.utils.prune.remove does"
        ) from error
    pad_plainly_(planted)
    if free:
        free_heads_(planted)
    walk = Walk(planted, algebra, findings)
    plant(planted, walk, settings=settings)
    watch = SizeWatch(walk)
    _forget_shapes()
    try:
        with torch.random.fork_rng([]), torch.no_grad(), walk.follow_modules(), watch, walk:
            refresh_(may_keep(planted))
            # One sample: costs are stated for batch 1, and no label can hide in the batch.
            output = call(planted, first_sample(inputs))
    except PrunusError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise GraphError(f"{_where_it_runs(planted, inputs)}: {said}") from error
    finally:
        _forget_shapes()
    returned = output_tensors(output)
    if not returned:
        raise GraphError(f"the network returns a {type(output).__name__} without any tensor in it")
    walk.read(returned)
    for tensor in returned:
        algebra.pin_all(walk.labels(tensor), OUTPUT)
    note_numbers(findings, walk.scalars)
    return algebra, findings


def _where_it_runs(network: nn.Module, inputs: Inputs) -> str:
    """What a network that cannot be walked runs on, for a message."""
    told = {
        "the network runs, but what it does cannot be followed": first_sample(inputs),
        "the network runs on example_inputs, but not on their first sample alone; it cannot be traced "
        "where the first dimension of its inputs is no batch, or where a squeeze() drops a batch of one "
        "(flatten(1) keeps it)": inputs,
    }
    for message, given in told.items():
        try:
            with torch.random.fork_rng([]):
                call(network, given)
        except Exception:  # noqa: BLE001, S112  # whatever a network raises
            continue
        return message
    return "the network does not run on example_inputs"


def _forget_shapes() -> None:
    """Empty the cache of einops: numbers kept from a forward pass would hide those that are traced."""
    cached = getattr(sys.modules.get("einops.einops"), "_reconstruct_from_shape", None)
    clear = getattr(cached, "cache_clear", None)
    if clear is not None:
        clear()


def _groups(algebra: Algebra, findings: Findings, network: nn.Module) -> list[Group]:
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


def _named(ignore: Sequence[str], network: nn.Module) -> frozenset[str]:
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


def _left_whole(group: Group, named: frozenset[str]) -> Group:
    if not any(axis.role == "out" and axis.tensor in named for axis in group.axes):
        return group
    return replace(group, refused=group.refused or IGNORED, ignored=True)


def _macs(network: nn.Module, sample: Inputs) -> int:
    """MACs of a network as it is, counted by walking it once."""
    _, findings = _walk(network, sample)
    return sum(t.constant * math.prod(ids.size for ids in t.dims) for t in findings.macs)


def _without_last(found: Trace, names: Sequence[str]) -> dict[str, BoolArray]:
    """Groups, each without its last channel, or as many as have to go at once."""
    groups = [found.by_name[name] for name in names]
    return {g.name: np.arange(g.units) < g.width(g.units - g.step) for g in groups}


def _miscount(dense: nn.Module, trial: Trace, sample: Inputs, names: Sequence[str]) -> str:
    """Whether groups, cut together, cost something else than predicted; empty where not."""
    keep = _without_last(trial, names)
    predicted, counted = trial.macs(keep), _macs(cut(dense, trial.plan(keep)), sample)
    if predicted == counted:
        return ""
    return (
        f"probe failed: the cut network has {counted:,} MACs where {predicted:,} are predicted; a "
        "size is written as a number in its code, perhaps where no output reads it"
    )


def _probe(network: nn.Module, found: Trace) -> Trace:
    """Cut the last channel of groups; what fails its certificate is refused by name.

    Group ``k`` is cut in the probes that the binary digits of ``k + 1`` name: every group in some
    probe, and of any two groups one without the other, so that a coupling missed between them shows.
    That takes log2 of the number of groups; only where a probe fails are its groups cut apart.
    Last all are cut together, in train mode as well, where that runs, and what that costs is counted:
    what no output reads may be wrong and nobody sees it.
    """
    dense = network if not network.training else copy.deepcopy(network).eval()
    whole = found.example_inputs
    open_groups = tuple(replace(g, min_units=1, round_to=1) for g in found.groups)
    trial = replace(found, groups=open_groups)
    sample = first_sample(whole)

    def failure(names: Sequence[str], *, train: bool = False) -> str:
        keep = _without_last(trial, names)
        try:
            certify(dense, trial, trial.plan(keep), whole if train else sample, train=train)
        except CertificateError as error:
            return f"probe failed: {error}"
        return ""

    names = [g.name for g in found.cuttable]
    suspects: dict[str, None] = {}
    for digit in range(len(names).bit_length()):
        probed = [name for k, name in enumerate(names) if (k + 1) >> digit & 1]
        if failure(probed):
            suspects |= dict.fromkeys(probed)
    refused = culprits(list(suspects), failure)
    # Then also what runs in train mode alone, such as a second head, and what it costs.
    for wrong in (partial(failure, train=True), partial(_miscount, dense, trial, sample)):
        rest = [name for name in names if name not in refused]
        refused |= culprits(rest, wrong)
    groups = tuple(replace(g, refused=refused.get(g.name, g.refused)) for g in found.groups)
    return replace(found, groups=groups)
