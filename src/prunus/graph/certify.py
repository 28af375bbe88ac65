"""The certificate: the cut network equals the dense network masked at full width.

The masked side is no cut network in disguise. It runs the *dense* network, every tensor at its full
width, and multiplies by zero at the input of every operation that sums over a removed channel;
normalisations and other reductions run over the kept channels. Where cut and masked outputs agree on
real inputs, in eval mode and in train mode, the cut did what the plan says and nothing else.

It covers what these inputs led to: a branch of Python that the network takes for other values, or for
another number of samples, was not run by it.
"""

import copy
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from prunus.errors import CertificateError, first_line
from prunus.graph.attention import plain_attention
from prunus.graph.cut import cut
from prunus.graph.difference import dense_tensors, relative_difference, same_whole_numbers
from prunus.graph.double import FLOAT32_LIMIT, FLOAT64_LIMIT, Verdict, agreement
from prunus.graph.dropout import draws_in_evaluation, without_dropout
from prunus.graph.encoders import packs_padding, pad_plainly_
from prunus.graph.groups import Trace
from prunus.graph.inputs import (
    Inputs,
    batch_size,
    call,
    cast,
    recast_,
)
from prunus.graph.kept import may_keep, refresh_
from prunus.graph.walk import Walk
from prunus.plan import Plan, ZeroConnections
from prunus.records import Certificate
from prunus.seeding import random_states_kept, seeded

_PACKED = 1e-2  # above what the fused kernel rounds


def certify(
    network: nn.Module,
    trace: Trace,
    plan: Plan,
    inputs: Inputs | None = None,
    *,
    train: bool = True,
) -> Certificate:
    """Compare the network cut by ``plan`` with the dense network masked by it.

    Args:
        network: The dense network; it is not touched.
        trace: Its trace.
        plan: A plan made from that trace.
        inputs: Real inputs; the trace's example where left out.
        train: Compare in train mode as well (on copies, dropout and drop-path at zero).

    Returns:
        The measured differences, relative to each value and to what is typical of its column; see
        ``relative_difference``.

    Raises:
        CertificateError: The outputs disagree, or the cut network does not run.
    """
    given = trace.example_inputs if inputs is None else inputs
    with seeded(0):  # a train mode may draw random numbers
        return _certify(network, trace, plan, given, train=train)


def _certify(
    network: nn.Module, trace: Trace, plan: Plan, given: Inputs, *, train: bool
) -> Certificate:
    compare = partial(_differences, network, trace, plan, given, train=train)
    found = agreement(compare, network, given)
    if not found.passed:
        raise CertificateError(
            f"cut and masked network disagree ({found.told}) for cuts of {_names(plan)}; leave these "
            "layers out with ignore"
        )
    single, double = found.single, found.double or (None, None)
    return Certificate(
        passed=True,
        eval_difference=single[0],
        train_difference=single[1],
        eval_difference_float64=double[0],
        train_difference_float64=double[1],
        samples=batch_size(given),
        reason=_caveats(network, given, found, compared=single[1] is not None) if train else "",
    )


def _names(plan: Plan) -> str:
    """A few of what a plan cuts."""
    return ", ".join(sorted(plan.channels)[:3]) or "connections"


def _caveats(network: nn.Module, inputs: Inputs, verdict: Verdict, *, compared: bool) -> str:
    """What the certificate could not show; empty when it showed all it promises."""
    found = [verdict.caveat] if verdict.caveat else []
    if not compared:
        found.append("the dense network has no train mode that runs and repeats on these inputs")
    dense = copy.deepcopy(network).eval()
    packed = None
    if packs_padding(dense):
        with warnings.catch_warnings(action="ignore"):  # torch's, of a prototype
            packed = call(dense, inputs)
    pad_plainly_(dense)
    with plain_attention():
        plain = call(dense, inputs)
    if packed is not None and relative_difference(plain, packed) > _PACKED:
        found.append(
            "torch zeroes padded positions of an nn.TransformerEncoder, in evaluation alone, and the "
            "network reads them; cut networks leave them as they are: mask what comes out"
        )
    rows = [t for t in dense_tensors(plain) if t.dim() and t.shape[0] > 1]
    if rows and all(torch.equal(t, t[:1].expand_as(t)) for t in rows):
        found.append("the outputs are the same for all samples, so equality says little")
    return "; ".join(found)


def _differences(
    network: nn.Module,
    trace: Trace,
    plan: Plan,
    inputs: Inputs,
    dtype: torch.dtype,
    share: float,
    *,
    train: bool,
) -> tuple[float, float | None]:
    """Differences in eval mode, as the network is, and in train mode, without dropout."""
    dense, given = _as_compared(network, dtype), cast(inputs, dtype)
    dense.eval()

    def difference(dense: nn.Module) -> float:
        with random_states_kept():  # a network that draws numbers gets the same ones twice
            ours = _run_cut(dense, plan, given)
        theirs = masked_outputs(dense, trace, plan, given)
        same = same_whole_numbers(theirs, ours)
        return relative_difference(theirs, ours, share=share) if same else float("inf")

    found = difference(dense)
    limit = FLOAT64_LIMIT if dtype == torch.float64 else FLOAT32_LIMIT
    if found > limit and draws_in_evaluation(dense, given):
        found = difference(without_dropout(dense, given))
    if not train:
        return found, None
    dense = without_dropout(dense, given)
    training = _outputs_in_training(dense, given)
    if not training:
        return found, None
    dense.train()
    if _repeats(training):
        return found, difference(dense)
    # Other draws, other numbers; but it has to run, and to answer in the same shapes.
    _require_shapes(training, _run_cut(dense, plan, given), plan)
    return found, None


def _as_compared(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in another precision, whose tensors have sizes and follow its parameters."""
    dense = copy.deepcopy(network)
    pad_plainly_(dense)
    refresh_(may_keep(dense))
    return recast_(dense, dtype)


def _run_cut(dense: nn.Module, plan: Plan, given: Inputs) -> Any:
    """Outputs of the cut network, in the mode of the dense one."""
    small = cut(dense, plan)
    try:
        return call(small, given)
    except Exception as error:
        where = "in train mode, " if dense.training else ""
        raise CertificateError(
            f"the network cut at {_names(plan)} does not run: {where}{first_line(error)}; leave "
            "these layers out with ignore"
        ) from error


def _require_shapes(training: Sequence[Any], ours: Any, plan: Plan) -> None:
    shapes = [[t.shape for t in dense_tensors(out)] for out in training]
    if shapes[0] == shapes[1] and [t.shape for t in dense_tensors(ours)] != shapes[0]:
        raise CertificateError(
            f"the network cut at {_names(plan)} answers in other shapes in train mode; leave these "
            "layers out with ignore"
        )


def masked_outputs(network: nn.Module, trace: Trace, plan: Plan, inputs: Inputs) -> Any:
    """Outputs of the dense network at full width, masked by the plan."""
    # A copy only where something in it changes: weights held at zero, running statistics.
    changes = network.training or any(isinstance(e, ZeroConnections) for e in plan.edits)
    full = copy.deepcopy(network) if changes else network
    for edit in plan.edits:
        if isinstance(edit, ZeroConnections):
            weight = full.get_parameter(edit.tensor)
            mask = torch.from_numpy(edit.keep.unpack().reshape(edit.shape)).to(weight.device)
            with torch.no_grad():
                weight.mul_(mask.reshape(mask.shape + (1,) * (weight.dim() - mask.dim())))
    walk = Walk(full, trace.algebra(), trace.findings, keep=trace.keep_by_atom(plan.channels))
    with torch.no_grad(), plain_attention(), walk.follow_modules(), walk:
        return call(full, inputs)


def _outputs_in_training(network: nn.Module, inputs: Inputs) -> tuple[Any, ...]:
    """What the dense network answers in train mode, twice; nothing where it does not run in it."""
    try:
        return tuple(call(copy.deepcopy(network).train(), inputs) for _ in range(2))
    except Exception:  # noqa: BLE001 - the dense network's own refusal, e.g. batch norm over one value
        return ()


def _repeats(training: Sequence[Any]) -> bool:
    """Whether a train mode draws no random numbers, and so can be compared."""
    first, again = training
    return relative_difference(first, again) == 0.0
