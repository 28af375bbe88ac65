"""Pick from a front that an earlier search found: another budget without another search."""

from pathlib import Path

import numpy as np
from torch import nn

from prunus.data.digest import tensors_digest
from prunus.errors import BudgetError, InputError
from prunus.graph import Choice, Trace, network_shape
from prunus.graph.stacks import layer_stacks
from prunus.method import Budget, Context, Decision
from prunus.prune.budget import ratio_choice
from prunus.prune.magnitude import magnitude_scores
from prunus.records import Front, FrontPoint


def read_front(path: Path) -> Front:
    """A front from its file.

    Raises:
        InputError: The file cannot be read, or is no front.
    """
    try:
        return Front.load(path)
    except InputError as error:
        raise InputError(
            f"option front: {error}; give what mode=front left, such as steps/01-prune.front.json"
        ) from error


def require_front(path: Path, network: nn.Module) -> None:
    """Refuse a file that is no front, or one of a network that no steps before it make of this one.

    Cuts only take away, so no tensor grows. Names within stacks are not compared: where layers go,
    the others are counted anew.

    Raises:
        InputError: The file cannot be read, or is no front.
        PlanMismatchError: The front is of another network.
    """
    front, here = read_front(path), network_shape(network)
    stacks = tuple(f"{stack}." for stack in layer_stacks(network))
    shared = {name: size for name, size in front.source.tensors.items() if name in here.tensors}
    grown = (
        len(size) != len(here.tensors[name])
        or any(new > old for new, old in zip(size, here.tensors[name], strict=True))
        for name, size in shared.items()
        if not name.startswith(stacks)
    )
    if not shared or any(grown):
        front.source.require(here, f"the front {path}")


def require_no_front_of(path: Path, network: nn.Module) -> None:
    """Refuse a front of a network that is cut before the front is used.

    Raises:
        InputError: The file cannot be read, is no front, or its front is of this network.
    """
    if read_front(path).source == network_shape(network):
        raise InputError(
            f"option front: {path} holds networks that were cut from the whole one, and a step before "
            "cuts that: pick from it in the first prune, or give a front that was found behind that step"
        )


def members_within(
    trace: Trace, budget: Budget, front: Front, path: Path
) -> list[tuple[FrontPoint, int]]:
    """Networks of a front that the budget allows, each with its cost.

    Raises:
        BudgetError: There is none, or none may be cut as the trace has it.
    """
    limit = budget.limit(budget.measure(trace, {}))
    legal = [(p, executed) for p in front.points if (executed := _executed(trace, p)) is not None]
    if not legal:
        raise BudgetError(
            f"none of the {len(front.points)} networks in {path} can be cut as ignore, min_units and "
            "round_to have it here: give those that it was found with, or search again"
        )
    costs = [budget.measure(trace, executed) for _, executed in legal]
    within = [(point, cost) for (point, _), cost in zip(legal, costs, strict=True) if cost <= limit]
    if not within:
        raise BudgetError(
            f"target {budget.quantity}={budget.value:g} allows {limit}, the cheapest of the "
            f"{len(costs)} networks in {path} costs {min(costs)}: raise the target, or search again"
        )
    return within


def decide_from_front(context: Context, path: Path) -> Decision:
    """The fittest network of a saved front that the budget allows.

    What the budget then has left is filled with the units of largest L2 norm, in the network's own
    proportions: members of a front rarely cost exactly what is asked for.

    Args:
        context: Its network must be the one that the front was found for.
        path: File that ``genetic`` in mode ``front`` left: ``steps/01-prune.front.json``.

    Raises:
        InputError: The file cannot be read, or is no front.
        PlanMismatchError: The front is of another network.
        BudgetError: No network on the front is within the budget, or can be cut as this trace has it.
    """
    trace, budget = context.trace, context.budget
    front = read_front(path)
    front.source.require(trace.shape, f"the front {path}")
    within = members_within(trace, budget, front, path)
    limit = budget.limit(budget.measure(trace, {}))
    pick, cost = min(within, key=lambda one: (one[0].fitness, one[0].macs, one[0].params))
    note = (
        f"genetic: fitness {pick.fitness:.4f} at {cost} of {limit} {budget.quantity}, from {path}; "
        f"{len(within)} of {len(front.points)} networks are within the target"
    )
    choice = _filled(trace, budget, _choice(pick), context)
    filled = budget.measure(trace, trace.cut_units(choice, pick.connections))
    notes = [note, *_unscored(budget, cost, filled), *_other_weights(front, context.network)]
    return Decision(choice=choice, connections=pick.connections, notes=tuple(notes))


def _unscored(budget: Budget, cost: int, filled: int) -> list[str]:
    """Says that the network made is a wider one than was scored, where it is."""
    if filled == cost:
        return []
    told = f"genetic: units of largest norm fill the budget to {filled} {budget.quantity}"
    return [f"{told}; with them the network was not scored"]


def _other_weights(front: Front, network: nn.Module) -> list[str]:
    """Says that fitness is another network's, where the front file tells so."""
    if front.weights in ("", tensors_digest(dict(network.named_parameters()))):
        return []
    told = "genetic: the front was found with other weights than this network has"
    return [f"{told}, and its fitness is of those; search again to know what these are worth"]


def _choice(point: FrontPoint) -> Choice:
    return {name: keep.unpack() for name, keep in point.keep.items()}


def _executed(trace: Trace, point: FrontPoint) -> Choice | None:
    """Units that the cut network has, less those that nothing reads; None: it may not be cut so here."""
    if any(edit.tensor in trace.ignored_tensors for edit in point.connections):
        return None
    try:
        return trace.cut_units(_choice(point), point.connections)
    except InputError:
        return None


def _filled(trace: Trace, budget: Budget, choice: Choice, context: Context) -> Choice:
    """All kept units, and the largest others that the budget has room for."""
    norms = magnitude_scores(context.network, trace, norm="l2", axes="out")
    whole = {g.name: choice.get(g.name, np.ones(g.units, dtype=bool)) for g in trace.cuttable}
    scores = {
        name: keep + norms[name] / (1 + float(norms[name].max())) for name, keep in whole.items()
    }
    return ratio_choice(trace, budget, scores, {n: float(k.mean()) for n, k in whole.items()})
