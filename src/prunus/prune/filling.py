"""Fill what a budget has left with neurons, where what a neuron costs hangs on its connections."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prunus.graph import Trace
from prunus.method import TOLERANCE, Budget
from prunus.plan import BoolArray
from prunus.prune.chromosome import Chromosome, Encoding
from prunus.prune.scores import FloatArray

Keep = dict[str, BoolArray]
Step = tuple[str, list[int]]
_SKIPS = 8  # of chains of neurons that cost too much, where none can be added alone
_PASSES = 8  # until no neuron is left that only holds a place


@dataclass(frozen=True, eq=False)
class Filling:
    """Adds neurons to a chromosome of few connections, which stay as they are.

    Only neurons that are alive count: some connection leads in from an active one, and another out.
    A gene of one that is not is left clear, or the neuron would come alive with a neighbour, which
    then costs more than it need. Neurons that are alive at once cost the same throughout a group, so
    that one that does not fit closes its group. Those that come alive only together are added together.

    Attributes:
        encoding: Of the network.
        trace: Of the network.
        budget: The limit.
        chromosome: Whose connections hold.
    """

    encoding: Encoding
    trace: Trace
    budget: Budget
    chromosome: Chromosome

    def fill(self, keep: Keep, ranks: Mapping[str, FloatArray]) -> Keep:
        """Active neurons, and others while they fit, until less than the tolerance is left.

        Args:
            keep: Neurons by group, at legal widths; alive, or in a group that has too few of those.
            ranks: Which to take first, by group: the larger.
        """
        for _ in range(_PASSES):
            # Once others come alive, those that held a place in a group fall away, and leave room.
            made = self._alive(self._filled(keep, ranks))
            if all((made[name] == mine).all() for name, mine in keep.items()):
                break
            keep = made
        return keep

    def _filled(self, keep: Keep, ranks: Mapping[str, FloatArray]) -> Keep:
        while True:
            keep = self._one_by_one(keep, ranks)
            if self._spare(keep) <= 0:
                return keep
            more = self._together(keep, ranks)
            if self._cost(more) <= self._cost(keep):
                return keep
            keep = more

    def _one_by_one(self, keep: Keep, ranks: Mapping[str, FloatArray]) -> Keep:
        waiting, grown = list(keep), True
        while grown:
            grown = False
            for name in list(waiting):
                if self._spare(keep) <= 0:
                    return keep
                wider = self._wider(keep, name, ranks[name])
                if wider is None:  # until a neighbour grows
                    continue
                if self._cost({**keep, name: wider}) > self._limit:
                    waiting.remove(name)
                else:
                    keep, grown = {**keep, name: wider}, True
        return keep

    def _wider(self, keep: Keep, name: str, scores: FloatArray) -> BoolArray | None:
        """A group with its next neurons, first those that would be alive; None without such."""
        whole = {**keep, name: np.ones(keep[name].size, dtype=bool)}
        alive = self._alive(whole)[name]
        steps = self._steps(name, keep[name], alive, scores)
        if not steps or not alive[steps[0]].any():
            return None
        return _with(keep[name], steps[0])

    def _together(self, keep: Keep, ranks: Mapping[str, FloatArray]) -> Keep:
        """Steps of all groups, in turn, while they fit; of what they make, the living neurons."""
        alive = self._alive({n: np.ones(k.size, dtype=bool) for n, k in keep.items()})
        found = []
        for name, mine in keep.items():
            reached = int(mine.sum())
            for step in self._steps(name, mine, alive[name], ranks[name]):
                reached += len(step)
                found.append((reached / mine.size, name, step))
        left = [(name, step) for _, name, step in sorted(found)]
        dear = {name: self._cost({**keep, name: _with(keep[name], step)}) for name, step in left}
        for _ in range(_SKIPS):
            first = self._fitting(keep, left)
            more = self._after(keep, left[:first])
            if self._cost(more) > self._cost(keep) or first == len(left):
                return more
            # One step more brings a chain to life that costs too much: those it cannot do without.
            chain = sorted(left[: first + 1], key=lambda step: -dear[step[0]])
            chain = self._needed(keep, chain)
            more = self._after(keep, chain)
            if self._cost(more) <= self._limit:
                return more
            left.remove(chain[0])  # the dearest, that the others may be of a chain that fits
        return keep

    def _needed(self, keep: Keep, steps: list[Step]) -> list[Step]:
        """As few of the steps as still bring a neuron to life; the first go first, halves of all at once."""
        size = len(steps)
        while size > 1:
            size, at = (size + 1) // 2, 0
            while at < len(steps):
                fewer = steps[:at] + steps[at + size :]
                if self._cost(self._after(keep, fewer)) > self._cost(keep):
                    steps = fewer
                else:
                    at += size
        return steps

    def _fitting(self, keep: Keep, steps: list[Step]) -> int:
        """How many of the steps fit, from the first on."""
        low, high = 0, len(steps) + 1  # the first fits, the last is out of reach
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._cost(self._after(keep, steps[:middle])) <= self._limit
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _after(self, keep: Keep, steps: list[Step]) -> Keep:
        """Living neurons after these steps; a step to a whole group needs those before it."""
        made = {name: mine.copy() for name, mine in keep.items()}
        for name, step in steps:
            made[name][step] = True
        for name, mine in made.items():
            count = int(mine.sum())
            if self.trace.by_name[name].width(count) != count:
                made[name] = keep[name]
        return self._alive(made)

    def _steps(
        self, name: str, mine: BoolArray, alive: BoolArray, scores: FloatArray
    ) -> list[list[int]]:
        """Missing neurons in steps to legal widths, the living first, then by score."""
        missing = np.flatnonzero(~mine)
        order = missing[np.lexsort((-scores[missing], ~alive[missing]))].tolist()
        group, steps = self.trace.by_name[name], []
        while order:
            kept = group.units - len(order)
            count = group.width(kept + 1) - kept
            steps.append(order[:count])
            order = order[count:]
        return steps

    def _alive(self, keep: Keep) -> Keep:
        made = self.encoding.with_neurons(self.chromosome, keep)
        return self.encoding.active(made)

    def _cost(self, keep: Keep) -> int:
        return self.budget.measure(self.trace, keep)

    @property
    def _limit(self) -> int:
        return self.budget.limit(self.budget.measure(self.trace, {}))

    def _spare(self, keep: Keep) -> float:
        """What is left of the limit beyond its tolerance."""
        return (1 - TOLERANCE) * self._limit - self._cost(keep)


def _with(mine: BoolArray, step: list[int]) -> BoolArray:
    return mine | np.isin(np.arange(mine.size), step)
