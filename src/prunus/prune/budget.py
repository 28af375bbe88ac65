"""Meet a budget exactly: from a score per unit to the units that stay.

Every group climbs a ladder of legal widths, its best units first. A level (one kept ratio for all
groups, or a rank in the list of all units) gives each group a rung, never a lower one for a higher
level, so that bisection finds the highest level within the budget. What the budget then has left is
filled a step at a time until no group can take one more.
"""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from prunus.errors import BudgetError, InputError
from prunus.graph import Choice, Group, Trace
from prunus.method import Budget
from prunus.plan import IntArray
from prunus.prune.scores import FloatArray, Scores

LEAST_SHARE = 0.1  # of its units that a group keeps in a global ranking
_HALVINGS = 48  # of the kept ratio: finer than one unit in any network


@dataclass(frozen=True, eq=False)
class _Ladder:
    """A group's units, best first, and how many of them may stay, ascending; the last is all."""

    group: Group
    order: IntArray
    scores: FloatArray
    widths: IntArray

    def rung(self, wanted: float) -> int:
        """The legal width nearest to the wanted one, the wider of two equally near."""
        middles = (self.widths[1:] + self.widths[:-1]) / 2
        return int(np.searchsorted(middles, wanted, side="right"))

    def places(self) -> FloatArray:
        """Of every unit, in the network's order: its rank in the group over the group's size."""
        found = np.empty(self.group.units)
        found[self.order] = np.arange(self.group.units) / self.group.units
        return found

    def next_share(self, rung: int) -> float:
        """Share of the units that the next rung keeps."""
        return float(self.widths[rung + 1]) / self.group.units

    def next_score(self, rung: int) -> float:
        """Mean score of the units that the next rung adds."""
        return float(self.scores[self.order[self.widths[rung] : self.widths[rung + 1]]].mean())


class _Stairs:
    """The ladders of all groups, and what a rung on each of them costs."""

    def __init__(self, trace: Trace, budget: Budget, scores: Scores, least_share: float) -> None:
        self._trace, self._budget = trace, budget
        self._knobs = (
            "min_units, round_to or least_share" if least_share else "min_units or round_to"
        )
        self.ladders = [_ladder(g, scores, least_share) for g in trace.cuttable]
        self._dense = budget.measure(trace, {})
        self._limit = budget.limit(self._dense)

    def choice(self, rungs: Sequence[int]) -> Choice:
        kept = {}
        for ladder, rung in zip(self.ladders, rungs, strict=True):
            mask = np.zeros(ladder.group.units, dtype=bool)
            mask[ladder.order[: ladder.widths[rung]]] = True
            kept[ladder.group.name] = mask
        return kept

    def fits(self, rungs: Sequence[int]) -> bool:
        return self._budget.measure(self._trace, self.choice(rungs)) <= self._limit

    def require_reachable(self) -> None:
        """Refuse a limit below the cost of the lowest rungs."""
        lowest = [0] * len(self.ladders)
        if self.fits(lowest):
            return
        least = self._budget.measure(self._trace, self.choice(lowest))
        raise BudgetError(
            f"target {self._budget.quantity}={self._budget.value:g} allows {self._limit}, but at "
            f"least {least} remain ({least / self._dense:.2%} of {self._dense}): raise the target, "
            f"or lower {self._knobs}"
        )

    def fill(self, rungs: list[int], reached: Callable[[int, int], tuple[float, ...]]) -> Choice:
        """Climb one rung at a time, the lowest ``reached(ladder, rung)`` first, while it fits.

        A step that does not fit never will, as costs only grow: its group is done. So the result is
        within the limit, and no group can take another step.
        """
        tops = [len(ladder.widths) - 1 for ladder in self.ladders]
        queue = [(reached(k, r), k) for k, r in enumerate(rungs) if r < tops[k]]
        heapq.heapify(queue)
        while queue:
            _, k = heapq.heappop(queue)
            rungs[k] += 1
            if not self.fits(rungs):
                rungs[k] -= 1
            elif rungs[k] < tops[k]:
                heapq.heappush(queue, (reached(k, rungs[k]), k))
        return self.choice(rungs)


def require_least_share(trace: Trace, budget: Budget, least_share: float) -> None:
    """Refuse a budget that is missed where every group keeps that share of its units.

    Raises:
        BudgetError: It is.
    """
    scores = {group.name: np.zeros(group.units) for group in trace.cuttable}
    _Stairs(trace, budget, scores, least_share).require_reachable()


def ratio_choice(
    trace: Trace, budget: Budget, scores: Scores, weights: Mapping[str, float]
) -> Choice:
    """Keep the best units of every group, in a share proportional to its weight, within a budget.

    A group keeps ``min(1, t * weight)`` of its units, with the highest ``t`` that the budget allows.

    Args:
        trace: Of the network.
        budget: The limit.
        scores: By group that can be cut, ``[units]``: higher stays longer; of equal ones the first.
        weights: By group that can be cut, above 0.

    Returns:
        Kept units by group. Its cost is within the limit, and one more unit (of a group that goes by
        steps, one more step) in any group would exceed it.

    Raises:
        BudgetError: The narrowest legal network costs more than the limit.
        InputError: Scores or weights that cannot be used.
    """
    stairs = _Stairs(trace, budget, scores, least_share=0.0)
    ladders = stairs.ladders
    for ladder in ladders:
        weight = weights.get(ladder.group.name, 0.0)
        if not 0 < weight < float("inf"):
            raise InputError(f"weight of group '{ladder.group.name}' is {weight}; it must be > 0")
    shares = [weights[ladder.group.name] for ladder in ladders]

    def rungs(t: float) -> list[int]:
        wanted = [min(1.0, t * share) for share in shares]
        return [la.rung(w * la.group.units) for la, w in zip(ladders, wanted, strict=True)]

    def reached(k: int, rung: int) -> tuple[float, ...]:
        return (ladders[k].next_share(rung) / shares[k],)

    stairs.require_reachable()
    low, high = 0.0, 1 / min(shares, default=1.0)
    if stairs.fits(rungs(high)):
        return stairs.choice(rungs(high))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if stairs.fits(rungs(middle)) else (low, middle)
    return stairs.fill(rungs(low), reached)


def uniform_choice(trace: Trace, budget: Budget, scores: Scores) -> Choice:
    """Keep the best units of every group, the same share of each; see ``ratio_choice``."""
    return ratio_choice(trace, budget, scores, {g.name: 1.0 for g in trace.cuttable})


def global_choice(
    trace: Trace, budget: Budget, scores: Scores, *, least_share: float = LEAST_SHARE
) -> Choice:
    """Keep the best units of the whole network, ranked in one list, within a budget.

    Of units of equal scores the one goes first that leaves its group the larger share: by order of
    the network the last groups would be stripped, the first ones left whole.

    Args:
        trace: Of the network.
        budget: The limit.
        scores: By group that can be cut, ``[units]``, comparable across groups.
        least_share: Share of its units that every group keeps, in [0, 1], whatever their rank: a
            layer that loses all but a few units breaks the network.

    Returns:
        Kept units by group. Its cost is within the limit, and one more unit (of a group that goes by
        steps, one more step) in any group would exceed it.

    Raises:
        BudgetError: The network of least widths costs more than the limit.
        InputError: Scores or share that cannot be used.
    """
    if not 0 <= least_share <= 1:
        raise InputError(f"least_share is {least_share}; it must be in [0, 1]")
    stairs = _Stairs(trace, budget, scores, least_share)
    ladders = stairs.ladders
    stairs.require_reachable()
    merged = np.concatenate([la.scores for la in ladders]) if ladders else np.empty(0)
    owner = np.repeat(np.arange(len(ladders)), [la.group.units for la in ladders])
    places = np.concatenate([la.places() for la in ladders]) if ladders else np.empty(0)
    ranked = owner[np.lexsort((places, -merged))]

    def rungs(rank: int) -> list[int]:
        counts = np.bincount(ranked[:rank], minlength=len(ladders)).tolist()
        return [la.rung(count) for la, count in zip(ladders, counts, strict=True)]

    low, high = 0, len(ranked) + 1  # the first fits, the last is out of reach
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if stairs.fits(rungs(middle)) else (low, middle)
    return stairs.fill(
        rungs(low), lambda k, rung: (-ladders[k].next_score(rung), ladders[k].next_share(rung))
    )


def _ladder(group: Group, scores: Scores, least_share: float) -> _Ladder:
    mine = np.asarray(scores.get(group.name, ()), dtype=np.float64)
    if mine.shape != (group.units,) or not np.isfinite(mine).all():
        found = f"shape {list(mine.shape)}" if mine.shape != (group.units,) else "not finite"
        raise InputError(
            f"scores of group '{group.name}' must be {group.units} finite numbers; got {found}"
        )
    # As written: 0.07 of 100 is 7, though 0.07 * 100 is a little more in binary.
    first = group.width(math.ceil(Fraction(repr(float(least_share))) * group.units))
    widths = np.append(np.arange(first, group.units, group.step), group.units)
    order = np.argsort(-mine, kind="stable")
    return _Ladder(group, order, mine, widths.astype(np.int64))
