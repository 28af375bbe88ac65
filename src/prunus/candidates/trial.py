"""Number format and layout of scoring, picked by a short measured trial on a real candidate."""

import itertools
from collections.abc import Sequence

import numpy as np
from torch import nn

from prunus.candidates.execution import WEIGHT_BITS, ScoringExecution, ScoringPrecision
from prunus.candidates.int8_find import require_int8, weight_bits
from prunus.candidates.scorer import Images, Scorer, Tricks
from prunus.candidates.task import Result, Task
from prunus.compute import Compute
from prunus.errors import InputError, PrunusError, first_line
from prunus.graph import Trace
from prunus.plan import Plan
from prunus.train.config import Layout
from prunus.train.forward import device_of
from prunus.train.precision import fastest, has_bfloat16

_REPEATS = 3
_BATCHES = 4
"""About as many as a search's first look: what a candidate costs once, int8's weights above all, counts as there."""
_KL_LIMIT = 0.005, 0.02
"""How far int8 may move a mean KL: nats, and a share of what it is in float32."""


def choose_execution(
    network: nn.Module, found: Trace, images: Images, compute: Compute
) -> ScoringExecution:
    """The fastest way to score a candidate on this machine; what is not ``auto`` stays.

    Each choice scores a candidate with half of the units: a batch to warm up, then four batches behind
    statistics of one, three times by turns, of which the least counts, for other work on the machine only
    adds. Plain float32 in the usual layout stays unless another takes less than 95 % of its time. A choice
    that the network cannot run in is left out, and int8 where it moves the KL of that candidate, or of the
    whole network, by more than 0.005 nats and 2 %. The outcome varies with the load of the machine: it is
    stored and becomes an input of the run.

    Args:
        network: That candidates are cut from.
        found: Its trace.
        images: What candidates are scored on.
        compute: What is left to choose.

    Raises:
        InputError: int8 or int7 is asked for where this machine has none, or the network cannot run in it.
    """
    choices = _choices(network, compute)
    half = _half(found)
    if len(choices) == 1:
        if choices[0].weight_bits or choices[0].precision != "float32":
            _require_it_runs(network, images, half, compute, choices[0])
        return choices[0]
    seconds = _seconds(network, images, half, compute, choices)
    best = fastest(seconds, choices[0])
    plans = (found.plan({}), half)
    if best.weight_bits and not _is_faithful(network, images, plans, compute, best):
        best = fastest({c: s for c, s in seconds.items() if not c.weight_bits}, choices[0])
    return best


def _require_it_runs(
    network: nn.Module, images: Images, plan: Plan, compute: Compute, choice: ScoringExecution
) -> None:
    try:
        _scored(network, images, plan, compute, choice)
    except Exception as error:  # a user's forward may raise anything
        told = isinstance(error, PrunusError)
        if told and error.__cause__ is None:
            raise
        first = first_line(error.__cause__ if told and error.__cause__ is not None else error)
        raise InputError(
            f"precision '{compute.precision}': the network cannot run in it ({first}); use precision 'auto'"
        ) from error


def _choices(network: nn.Module, compute: Compute) -> Sequence[ScoringExecution]:
    precisions: list[ScoringPrecision] = ["float32"]
    asked = WEIGHT_BITS.get(compute.precision)
    if asked:
        require_int8(network, asked, "use precision 'auto'")
    if compute.precision != "auto":
        precisions = [compute.precision]
    elif has_bfloat16(device_of(network)):
        precisions.append("bfloat16")
    layouts: list[Layout] = ["contiguous"]
    if compute.layout != "auto":
        layouts = [compute.layout]
    elif asked:
        layouts = ["channels_last"]  # what its kernel takes
    elif any(parameter.ndim == 4 for parameter in network.parameters()):
        layouts.append("channels_last")
    choices = list(itertools.starmap(ScoringExecution.of, itertools.product(precisions, layouts)))
    bits = weight_bits(network) if compute.precision == "auto" else 0
    if bits and layouts[-1] == "channels_last":
        choices.append(ScoringExecution("float32", "channels_last", weight_bits=bits))
    return choices


def _half(found: Trace) -> Plan:
    """A candidate with every other unit, or as many as may stay at least."""
    choice = {}
    for group in found.cuttable:
        kept = group.width(group.units // 2)
        choice[group.name] = np.zeros(group.units, dtype=np.bool_)
        choice[group.name][np.arange(kept) * group.units // kept] = True
    return found.plan(choice)


def _is_faithful(
    network: nn.Module,
    images: Images,
    plans: Sequence[Plan],
    compute: Compute,
    choice: ScoringExecution,
) -> bool:
    """Whether a choice scores plans about as float32 in its layout does."""
    exact = ScoringExecution.of("float32", choice.layout)
    least, share = _KL_LIMIT
    for plan in plans:
        coarse, fine = (
            float(_scored(network, images, plan, compute, execution)[0].kl.mean())
            for execution in (choice, exact)
        )
        if not abs(coarse - fine) <= least + share * fine:  # nor where it is no number
            return False
    return True


def _seconds(
    network: nn.Module,
    images: Images,
    plan: Plan,
    compute: Compute,
    choices: Sequence[ScoringExecution],
) -> dict[ScoringExecution, float]:
    """Seconds of a candidate by choice; those that the network cannot run in are left out."""
    scorers: dict[ScoringExecution, Scorer] = {}
    for choice in choices:
        try:
            _, scorers[choice] = _scored(network, images, plan, compute, choice)
        except Exception:  # noqa: BLE001, S112  # as above
            continue  # the plain choice, if it fails too, raises in the scoring itself
    task = Task("trial", plan, 0, min(_BATCHES * compute.batch_size, len(images)), calibration=1)
    turns = [
        {choice: scorer(task).seconds for choice, scorer in scorers.items()}
        for _ in range(_REPEATS)
    ]
    return {choice: min(turn[choice] for turn in turns) for choice in scorers}


def _scored(
    network: nn.Module, images: Images, plan: Plan, compute: Compute, choice: ScoringExecution
) -> tuple[Result, Scorer]:
    """One batch of a plan."""
    scorer = Scorer(
        network,
        images,
        execution=choice,
        batch_size=compute.batch_size,
        tricks=Tricks(memory_bytes=0),
    )
    stop = min(compute.batch_size, len(images))
    return scorer(Task("trial", plan, 0, stop, calibration=1)), scorer
