"""Trace a network: which channels are coupled to which, found by watching one forward pass."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunus.errors import InputError
from prunus.graph.cut import network_shape
from prunus.graph.follow import follow
from prunus.graph.grouping import groups_of, left_whole, named_by
from prunus.graph.groups import Trace
from prunus.graph.inputs import check_inputs, check_network
from prunus.graph.overlap import require_tied_by_name
from prunus.graph.probe import FAILED, probe
from prunus.graph.settle import settle
from prunus.graph.walk import WRITTEN
from prunus.sound import require_sound


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
    require_tied_by_name(network)
    inputs = check_inputs(example_inputs)
    numbers: dict[str, object] = {"min_units": min_units, "round_to": round_to}
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}; give a whole number of at least 1")
    if isinstance(ignore, str):
        raise InputError(f"ignore is the text {ignore!r}; give a list of patterns: [{ignore!r}]")
    named = named_by(ignore, network)

    def traced(*, literal: bool) -> Trace:
        algebra, findings = follow(network, inputs, literal=literal)
        settle(algebra, findings)
        groups = groups_of(algebra, findings, network)
        groups = [replace(g, min_units=min_units, round_to=round_to) for g in groups]
        algebra.atoms.frozen = True
        found = Trace(
            shape=network_shape(network),
            groups=tuple(left_whole(group, named) for group in groups),
            example_inputs=inputs,
            findings=findings,
            atoms=algebra.atoms,
            parameters={n: tuple(p.shape) for n, p in network.named_parameters()},
            stored=_stored(network),
            ignored=named,
        )
        return probe(network, found) if verify else found

    found = traced(literal=True)
    if not (verify and found.findings.written and _may_be_misread(found)):
        return found
    # What says `4` and what says `int(channels / 4)` look alike in a view: the probes tell.
    return max(found, traced(literal=False), key=_cuttable_channels)


def _may_be_misread(found: Trace) -> bool:
    """Whether a group is refused as one would be by a number that is no part of the code."""
    return any(told in group.refused for group in found.groups for told in (FAILED, WRITTEN))


def _cuttable_channels(found: Trace) -> int:
    """Channels in groups that can be cut."""
    return sum(group.units * group.channels_per_unit for group in found.cuttable)


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


def _stored(network: nn.Module) -> dict[str, int]:
    """Bytes per element of what a file of this network holds, tied tensors once."""
    saved = network.state_dict().keys()
    named = [*network.named_parameters(), *network.named_buffers()]
    return {name: tensor.element_size() for name, tensor in named if name in saved}
