"""The certificate of edits that replace modules or tables.

Each kind has its own promise. Factors: the network equals the dense one whose layers have the products
of the given factors as weights. Layers: it equals the dense one in which the dropped layers pass their input
on. Vocabulary: logits are the same on texts whose pieces are all kept. The other side is made without
the code that rebuilt the network: products are multiplied out, layers are passed by with hooks, pieces
are called by their old numbers.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.errors import CertificateError, GraphError, first_line
from prunus.graph.cut import cut
from prunus.graph.difference import relative_difference
from prunus.graph.double import Differences, agreement
from prunus.graph.inputs import Inputs, call, cast, flat_tensors, recast_
from prunus.graph.kept import may_keep, refresh_
from prunus.plan import Factorize, KeepLayers, KeepVocabulary, Plan
from prunus.records import Certificate
from prunus.seeding import seeded

_PIECES = "input_ids"
Values = Mapping[str, torch.Tensor]
Factors = Mapping[str, tuple[str, ...]]


def certify_rebuild(network: nn.Module, plan: Plan, tensors: Values, inputs: Inputs) -> Certificate:
    """Compare the network that a plan makes with the dense one that its edits stand for.

    In eval mode, in float32; where rounding exceeds its limit, float64 decides. Train mode adds
    nothing: the edits have no part in dropout or batch statistics.

    Args:
        network: The dense network; not touched.
        plan: Of edits that replace modules or tables.
        tensors: Values of what is made anew.
        inputs: Real inputs; pieces that go are replaced by others on both sides.

    Raises:
        GraphError: The plan both factorizes and drops layers.
        CertificateError: The outputs disagree, a factor is not given, or the rebuilt network does not
            run.
    """
    _require_simple(plan)
    factors = {
        edit.module: _factor_names(edit, plan)
        for edit in plan.rebuilds
        if isinstance(edit, Factorize)
    }
    _require_given(factors, tensors)
    compare = partial(_difference, network, plan, tensors, factors, inputs)
    found = agreement(compare, network, inputs)
    if not found.passed:
        names = ", ".join(_name(edit) for edit in plan.rebuilds[:3])
        raise CertificateError(
            f"the rebuilt network and the dense one it stands for disagree ({found.told}) at {names}; "
            "leave these out with ignore"
        )
    return Certificate(
        passed=True,
        eval_difference=found.single[0],
        train_difference=None,
        eval_difference_float64=None if found.double is None else found.double[0],
        samples=int(next((t.shape[0] for t in flat_tensors(inputs) if t.dim()), 1)),
        reason=found.caveat,
    )


def _require_simple(plan: Plan) -> None:
    kinds = {type(edit) for edit in plan.rebuilds}
    if {Factorize, KeepLayers} <= kinds:  # paths of layers shift between the two
        raise GraphError(
            "the plan both factorizes and drops layers, which no certificate covers; make two plans, "
            "one after the other"
        )


def _factor_names(edit: Factorize, plan: Plan) -> tuple[str, ...]:
    """Names of the factors' weights, first to last, as they are told apart: under their owner."""
    edits = {e.module: e for e in plan.rebuilds if isinstance(e, Factorize)}
    first = last = edit
    while first.first in edits:
        first = edits[first.first]
    while last.last in edits:
        last = edits[last.last]
    inner = (f"{edit.module}.1.weight",) if edit.form.startswith("tucker") else ()
    end = f"{last.module}.{2 if last.form.startswith('tucker') else 1}.weight"
    return (f"{first.module}.0.weight", *inner, end)


def _require_given(factors: Factors, tensors: Values) -> None:
    """Refuse factors without values: zeros would equal zeros."""
    for module, names in factors.items():
        for name in names:
            if name not in tensors:
                raise CertificateError(
                    f"factor '{name}' of '{module}' has no value; give the tensors of the decision "
                    "that the plan was made from"
                )


def _difference(
    network: nn.Module,
    plan: Plan,
    tensors: Values,
    factors: Factors,
    inputs: Inputs,
    dtype: torch.dtype,
    share: float,
) -> Differences:
    dense = copy.deepcopy(network).eval()
    refresh_(may_keep(dense))
    recast_(dense, dtype)
    given = {name: value.to(dtype) for name, value in tensors.items()}
    rebuilt = cut(dense, plan, given).eval()
    old, new = _pieces(plan, cast(inputs, dtype))
    try:
        with seeded(0):  # a network that draws numbers gets the same ones twice
            found = call(rebuilt, new)
    except Exception as error:
        reason = first_line(error)
        raise CertificateError(f"the rebuilt network does not run: {reason}") from error
    for edit in plan.rebuilds:
        if isinstance(edit, Factorize):
            parts = [given[name] for name in factors[edit.module]]
            _multiply_out_(dense.get_submodule(edit.module), edit, parts)
    with seeded(0):
        wanted = _stood_for(dense, plan, old)
    return relative_difference(wanted, found, share=share), None


def _stood_for(dense: nn.Module, plan: Plan, inputs: Inputs) -> Any:
    """Outputs of the dense network with dropped layers passed by."""
    handles = []
    for edit in plan.rebuilds:
        if isinstance(edit, KeepLayers):
            stack = list(dense.get_submodule(edit.stack).children())
            for layer, stays in zip(stack, edit.keep.unpack(), strict=True):
                if not stays:
                    handles.append(layer.register_forward_hook(_pass_on, with_kwargs=True))
    try:
        return call(dense, inputs)
    finally:
        for handle in handles:
            handle.remove()


def _multiply_out_(layer: nn.Module, edit: Factorize, parts: Sequence[torch.Tensor]) -> None:
    """Give a layer the product of the given factors as weight."""
    product: torch.Tensor = parts[0]
    if edit.form == "embedding":
        product = parts[0] @ parts[1].T
    elif edit.form == "tucker-conv":
        first, core, last = parts[0].flatten(1), parts[1], parts[2].flatten(1)
        product = torch.einsum("sr,rqhw,qi->sihw", last, core, first)
    else:
        for part in parts[1:]:
            product = part @ product
    with torch.no_grad():
        layer.get_parameter("weight").copy_(product)


def _pass_on(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """What a layer that is not there hands on: what it was handed."""
    first = given[0] if given else named["hidden_states"]
    return first if isinstance(output, torch.Tensor) else (first, *output[1:])


def _pieces(plan: Plan, inputs: Inputs) -> tuple[Inputs, Inputs]:
    """The same texts in old and in new numbers, of pieces that are all kept."""
    old = new = inputs
    for edit in plan.rebuilds:
        if isinstance(edit, KeepVocabulary):
            if not isinstance(inputs, Mapping) or _PIECES not in inputs:
                raise CertificateError(
                    f"a smaller vocabulary is certified on texts: give inputs with '{_PIECES}'"
                )
            keep, ids = edit.keep.unpack(), inputs[_PIECES]
            at = torch.from_numpy(np.flatnonzero(keep)).to(ids.device)
            rank = torch.from_numpy(np.cumsum(keep) - 1).to(ids.device)
            there = torch.from_numpy(keep).to(ids.device)[ids]
            # A piece that goes stands for one that stays, by its number.
            spelled = torch.where(there, ids, at[ids % len(at)])
            old = {**inputs, _PIECES: spelled}
            new = {**inputs, _PIECES: rank[spelled]}
    return old, new


def _name(edit: Any) -> str:
    return str(getattr(edit, "module", getattr(edit, "stack", getattr(edit, "tables", edit))))
