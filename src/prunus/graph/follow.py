"""Follow one forward pass of a network: which channels are coupled, and what was noted on the way."""

import copy
import sys
from contextlib import suppress

import torch
from torch import nn

from prunus.errors import GraphError, PrunusError, first_line
from prunus.graph import (  # noqa: F401  # the rules register themselves
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
from prunus.graph.encoders import pad_plainly_
from prunus.graph.findings import Findings
from prunus.graph.inputs import Inputs, call, first_sample, output_tensors
from prunus.graph.kept import may_keep, refresh_
from prunus.graph.labels import OUTPUT, Algebra
from prunus.graph.provenance import SizeWatch, plant
from prunus.graph.settle import note_numbers
from prunus.graph.walk import Walk
from prunus.seeding import seeded


def follow(network: nn.Module, inputs: Inputs, *, literal: bool = True) -> tuple[Algebra, Findings]:
    """Walk with all that can be followed; where that fails, leave whole what may stand in the way.

    Modules may tell one another by an object that looks like settings, or ask for the very class of an
    attention.

    Args:
        network: Not touched.
        inputs: A real batch.
        literal: Take a plain number in the sizes of a view for one that the code says, which no cut
            changes; else it may have been computed from what follows a cut.

    Raises:
        GraphError: The network cannot be copied, does not run on the inputs, or returns no tensor.
    """
    attends = any(type(module) is nn.MultiheadAttention for module in network.modules())
    for free, settings in ((True, True), (True, False), (False, True)):
        if attends or not free:
            with suppress(GraphError):
                return _follow_once(network, inputs, settings=settings, free=free, literal=literal)
    return _follow_once(network, inputs, settings=False, free=False, literal=literal)


def _follow_once(
    network: nn.Module, inputs: Inputs, *, settings: bool, free: bool, literal: bool
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
    walk = Walk(planted, algebra, findings, literal=literal)
    plant(planted, walk, settings=settings)
    watch = SizeWatch(walk)
    _forget_shapes()
    try:
        with seeded(0), torch.no_grad(), walk.follow_modules(), watch, walk:
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
            with seeded(0):
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
