"""Whether a target can be reached at all, and which setting is in its way where it cannot."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil

import numpy as np
from torch import nn

from prunus.errors import BudgetError, GraphError, PrunusError
from prunus.graph import Choice, Inputs, Trace
from prunus.graph.labels import IGNORED
from prunus.method import Budget, make_method, method_class
from prunus.recipe.actions import Action
from prunus.recipe.steps import Prune


def require_reachable(actions: Sequence[Action], trace: Trace, dense: Trace | None = None) -> None:
    """Refuse a target below what is left when every group is cut to its least width.

    Args:
        actions: Whose targets are looked at, in their order: up to the first that does more than to cut
            units of groups.
        trace: Of the network that they cut.
        dense: Of the network that shares are of; None: the same.

    Raises:
        BudgetError: With what is reachable, and the setting that is in the way.
    """
    smallest = _smallest(trace)
    for action in actions:
        budget = action.budget
        if _edits(action):
            return  # what it leaves is not what is traced here
        if budget is None or not isinstance(action.step, Prune):
            continue
        whole, left = budget.measure(dense or trace, {}), budget.measure(trace, smallest)
        if left > budget.limit(whole):
            cut = "" if dense is None else "of the student "
            raise BudgetError(
                f"{action.path}.target: {budget.quantity}={budget.value:g} cannot be reached: "
                f"{cut}{len(trace.cuttable)} of {len(trace.groups)} groups can be cut, and at their "
                f"least widths {left} of {whole} are left; {_remedy(budget, trace, left, whole)}"
            )


def first_misfit(
    actions: Sequence[Action], network: nn.Module, inputs: Inputs
) -> PrunusError | None:
    """Why a method of a run finds nothing to work on in a network: the first one's error, or None.

    Cuts before it leave what it looks for, or take it away: then it says so itself.
    """
    renamed = narrowed = False
    for action in actions:
        if not isinstance(action.step, Prune):
            continue
        method = make_method(action.step.method, action.step.options)
        try:
            method.require_applicable(network, inputs)
            if narrowed:
                method.require_uncut(network)
        except GraphError as error:
            return error
        except PrunusError as error:
            if not renamed:  # else its options may name what is not there yet
                return error
        renamed = renamed or method.edits
        # A share below 1 is met by a cut alone; a number may be met as it is.
        narrowed |= action.budget is not None and action.budget.value < 1
    return None


def first_beyond(
    actions: Sequence[Action], network: nn.Module, trace: Trace, dense: Trace | None = None
) -> PrunusError | None:
    """Why the first cut of a run cannot meet its target, by what its method says; None where it may.

    Arguments are those of ``require_reachable``, and the network itself.
    """
    for action in actions:
        step, budget = action.step, action.budget
        if not isinstance(step, Prune):
            continue
        if budget is None:
            return None
        if dense is not None:  # a share of it is none of the student
            limit = action.limit(budget.measure(dense, {}))
            budget = Budget(quantity=budget.quantity, value=max(2.0, float(limit)))
        try:
            make_method(step.method, step.options).require_reachable(network, trace, budget)
        except PrunusError as error:
            return error
        return None
    return None


def _edits(action: Action) -> bool:
    """Whether other things than units of groups are cut; what such a method reaches, it says itself."""
    return isinstance(action.step, Prune) and method_class(action.step.method).edits


def _smallest(trace: Trace) -> Choice:
    """Every group at its least width."""
    found = {}
    for group in trace.cuttable:
        found[group.name] = np.arange(group.units) < group.width(group.min_units)
    return found


def _remedy(budget: Budget, trace: Trace, left: int, whole: int) -> str:
    """What to write instead; ``whole`` is what shares are of."""
    share = f"{budget.quantity}={ceil(1000 * left / whole) / 1000:g}"
    ask = f"ask for {share} or more"
    if budget.value > 1:
        ask = f"a number above 1 is no share: ask for {budget.quantity}={left} or more, or for {share}"
    nothing_goes = left == budget.measure(trace, {})
    blamed = _blamed(budget, trace, whole)
    if blamed:
        change = f"change {' and '.join(blamed)}, which stands in the way"
        return change if nothing_goes else f"{change}, or {ask}"
    if not nothing_goes:
        return ask
    reasons = dict.fromkeys(group.refused for group in trace.groups if group.refused)
    why = next(iter(reasons), "it has no channels in groups")
    return f"nothing of this network can be cut ({why}); give another network"


def _blamed(budget: Budget, trace: Trace, whole: int) -> list[str]:
    """The settings without which the target can be reached: one where one is enough, else all."""
    given = _settings(trace)
    for name in given:
        if _reached(budget, trace, whole, {name}):
            return [given[name]]
    return (
        [*given.values()] if len(given) > 1 and _reached(budget, trace, whole, set(given)) else []
    )


def _settings(trace: Trace) -> Mapping[str, str]:
    """Settings of the trace that keep groups from being cut further, with their values."""
    found = {}
    largest = max((group.round_to for group in trace.groups), default=1)
    fewest = max((group.min_units for group in trace.groups), default=1)
    if largest > 1:
        found["round_to"] = f"round_to={largest} (--round-to)"
    if fewest > 1:
        found["min_units"] = f"min_units={fewest} (--min-units)"
    if ignored := [group.name for group in trace.groups if group.refused == IGNORED]:
        found["ignore"] = f"ignore (--ignore), which keeps {len(ignored)} groups whole"
    return found


def _reached(budget: Budget, trace: Trace, whole: int, without: set[str]) -> bool:
    """Whether the target can be reached without these settings."""
    groups = tuple(
        replace(
            group,
            round_to=1 if "round_to" in without else group.round_to,
            min_units=1 if "min_units" in without else group.min_units,
            refused="" if "ignore" in without and group.refused == IGNORED else group.refused,
        )
        for group in trace.groups
    )
    free = replace(trace, groups=groups)
    return budget.measure(free, _smallest(free)) <= budget.limit(whole)
