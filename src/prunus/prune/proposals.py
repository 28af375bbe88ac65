"""Chromosomes on a budget: the first population, and children of two parents."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as attribute

import numpy as np

from prunus.errors import BudgetError
from prunus.graph import Choice, Trace
from prunus.method import TOLERANCE, Budget
from prunus.plan import BoolArray
from prunus.prune.budget import global_choice, ratio_choice, uniform_choice
from prunus.prune.chromosome import Chromosome, Encoding, Layer, dropped_share
from prunus.prune.filling import Filling
from prunus.prune.genetic_options import GeneticOptions
from prunus.prune.scores import FloatArray, Scores, normalized
from prunus.search import break_point, gumbel_ranks, swap, uniform

MOVED_GROUPS = 3.0
"""Groups that a ratio move changes, on average."""
_REFITS = 12  # of neurons to what is left by those without connections


@dataclass(frozen=True, eq=False)
class Proposals:
    """Draws chromosomes within a budget: to a unit, or to its tolerance where there are connections.

    Attributes:
        encoding: Of the network.
        trace: Of the network.
        options: Settled.
        scores: Importance of every unit that can be cut, above 0 where it matters; None: all alike.
        generator: Of all draws.
    """

    encoding: Encoding
    trace: Trace
    options: GeneticOptions
    scores: Scores | None
    generator: np.random.Generator
    _weights: dict[str, FloatArray] = attribute(default_factory=dict)

    def initial(self, budget: Budget, number: int) -> Chromosome:
        """Member ``number`` of the first population (stage 1).

        With importance, the first two are what a ranking would do: the same share of every group,
        and one list over the whole network. All others draw a share per group, log-normal around the
        common one, then units.
        """
        if self.scores is not None and number == 0:
            choice = uniform_choice(self.trace, budget, self.scores)
        elif self.scores is not None and number == 1:
            choice = self._network_wide(budget, normalized(self.scores, "mean"))
        else:
            names = [group.name for group in self.trace.cuttable]
            factors = np.exp(self.options.jitter * self.generator.standard_normal(len(names)))
            shares = dict(zip(names, factors.tolist(), strict=True))
            choice = ratio_choice(self.trace, budget, self._drawn(), shares)
        chromosome = self.encoding.with_neurons(self.encoding.full(), choice)
        share = self.options.connections
        if share is not None and share < 1:
            return self.fitted(self._sparse(chromosome, share), budget)
        # Zeros of earlier rounds take connections from neurons just as genes do.
        return (
            self.fitted(chromosome, budget) if self.encoding.zero_share(chromosome) else chromosome
        )

    def _network_wide(self, budget: Budget, scores: Scores) -> Choice:
        """One ranked list; with a least share per group where the budget has room for that."""
        try:
            return global_choice(self.trace, budget, scores)
        except BudgetError:
            return global_choice(self.trace, budget, scores, least_share=0.0)

    def child(self, a: Chromosome, b: Chromosome, budget: Budget) -> Chromosome:
        """Crossover (stage 4), mutation (stage 5), and back to the budget."""
        options, generator = self.options, self.generator
        crossed = True
        if options.mixing == "break-point":
            made = break_point(a, b, options.crossover)
        else:
            crossed = generator.random() < options.crossover
            made = uniform(a, b, generator) if crossed else a
        mutated = generator.random() < options.mutation
        if mutated or (not crossed and options.mutation > 0):  # no child is a mere copy
            made = self._mutated(made)
        return self.fitted(made, budget)

    def fitted(self, chromosome: Chromosome, budget: Budget) -> Chromosome:
        """The chromosome with neurons that cost what the budget allows, connections as they are.

        A neuron that has lost all its connections, by its genes or to earlier rounds, costs nothing:
        others get what it leaves.
        """
        neurons, order = self.encoding.neurons(chromosome), self._order()
        made = self.encoding.with_neurons(chromosome, self.to_budget(neurons, budget, order))
        if not self.encoding.zero_share(made):
            return made
        dense = budget.measure(self.trace, {})
        low = limit = budget.limit(dense)
        high: int | None = None
        for _ in range(_REFITS):
            spare = limit - self._cost(made, budget)
            if spare <= TOLERANCE * limit or low >= dense:
                break
            asked = min(low + spare if high is None else (low + high) // 2, dense)
            more = Budget(quantity=budget.quantity, value=max(float(asked), 2.0))
            wider = self.encoding.with_neurons(chromosome, self.to_budget(neurons, more, order))
            if self._cost(wider, budget) > limit:
                high = asked
            else:
                low, made = asked, wider
        return self._topped_up(made, budget, order)

    def _topped_up(
        self, chromosome: Chromosome, budget: Budget, order: Sequence[FloatArray]
    ) -> Chromosome:
        """Neurons added a step at a time, a group at a time, while they fit."""
        limit = budget.limit(budget.measure(self.trace, {}))
        if limit - self._cost(chromosome, budget) <= TOLERANCE * limit:
            return chromosome
        keep = self.encoding.active(chromosome)
        filling = Filling(self.encoding, self.trace, budget, chromosome)
        keep = filling.fill(keep, dict(zip(keep, order, strict=True)))
        return self.encoding.with_neurons(chromosome, keep)

    def shortfall(self, chromosome: Chromosome, budget: Budget) -> tuple[str, ...]:
        """A note where much of the budget is left, which units without connections cannot fill."""
        choice = self.encoding.active(chromosome)
        limit = budget.limit(budget.measure(self.trace, {}))
        cost = budget.measure(self.trace, choice)
        if cost >= (1 - TOLERANCE) * limit or not budget.has_room(self.trace, choice):
            return ()
        ways, share = [], self.options.connections
        if share is not None and share < 1:
            ways.append(f"raise connections={share:g}")
        if not ways or self.encoding.zero_share(chromosome) > dropped_share(chromosome):
            ways.append("let earlier rounds hold fewer at zero")
        note = (
            f"genetic: {cost} of {limit} {budget.quantity} are used ({cost / limit:.1%}): "
            "no other units were found that fit and have connections to active ones; "
            f"{' or '.join(ways)} to use more"
        )
        return (note,)

    def _cost(self, chromosome: Chromosome, budget: Budget) -> int:
        return budget.measure(self.trace, self.encoding.active(chromosome))

    def to_budget(
        self,
        neurons: Mapping[str, BoolArray],
        budget: Budget,
        order: Sequence[FloatArray] | None = None,
    ) -> Choice:
        """The nearest widths in the same proportions that the budget allows.

        A group that must shrink loses its least important neurons, one that may grow gets back the
        most important ones; without importance, any. ``order``: importance by group, or a draw.
        """
        by_group = self._order() if order is None else order
        scores = {n: k + _ranks(s) for (n, k), s in zip(neurons.items(), by_group, strict=True)}
        shares = {name: float(keep.mean()) for name, keep in neurons.items()}
        return ratio_choice(self.trace, budget, scores, shares)

    # -- draws --------------------------------------------------------------------------------

    def _mutated(self, chromosome: Chromosome) -> Chromosome:
        """Swap genes of every layer, at a constant count; then move shares between layers."""
        made = tuple(
            self._swapped(n, x) for n, x in zip(self.encoding.names, chromosome, strict=True)
        )
        return self._moved(made) if self.options.moves else made

    def _swapped(self, name: str, layer: Layer) -> Layer:
        generator, rate = self.generator, self.options.swaps
        neurons = swap(
            layer.neurons, _count(layer.neurons, rate, generator), generator, self._scale(name)
        )
        connections = {
            tensor: swap(genes, _count(genes, rate, generator), generator)
            for tensor, genes in layer.connections.items()
            if not genes.all()
        }
        return Layer(neurons, {**layer.connections, **connections})

    def _moved(self, chromosome: Chromosome) -> Chromosome:
        """Change the shares of some groups; what that costs or saves, the budget evens out."""
        generator, neurons = self.generator, self.encoding.neurons(chromosome)
        if not neurons:
            return chromosome
        chosen = generator.random(len(neurons)) < MOVED_GROUPS / len(neurons)
        factors = np.exp((self.options.moves or 0.0) * generator.standard_normal(len(neurons)))
        moved: dict[str, BoolArray] = {}
        for (name, keep), scores, at, factor in zip(
            neurons.items(), self._order(), chosen, factors, strict=True
        ):
            if at:
                kept = min(keep.size, max(1, round(float(factor) * int(keep.sum()))))
                first = np.argsort(-(keep + _ranks(scores)), kind="stable")[:kept]
                moved[name] = np.isin(np.arange(keep.size), first)
        return self.encoding.with_neurons(chromosome, moved)

    def _sparse(self, chromosome: Chromosome, share: float) -> Chromosome:
        """The same share of every weight's connections, drawn at random."""
        return tuple(
            Layer(
                layer.neurons,
                {
                    tensor: self._some(genes.shape, max(1, round(share * genes.size)))
                    for tensor, genes in layer.connections.items()
                },
            )
            for layer in chromosome
        )

    def _some(self, shape: tuple[int, ...], count: int) -> BoolArray:
        """That many connections; but in the paper's mode, as few neurons as can be have none.

        Neurons without connections are lost to the budget, however much is left of it.
        """
        size = math.prod(shape)
        places = self.generator.permutation(size).reshape(shape)
        if self.options.mode == "paper":
            return np.asarray(places < count, dtype=bool)
        for axis in (0, 1):
            places = places - size * (places % size == (places % size).min(axis, keepdims=True))
        first = np.argsort(places, axis=None)[:count]
        return np.isin(np.arange(size), first).reshape(shape)

    def _drawn(self) -> dict[str, FloatArray]:
        """Scores whose best are a sample of a group's units."""
        if self.scores is None:
            return {g.name: self.generator.random(g.units) for g in self.trace.cuttable}
        temperature = self.options.temperature
        return {
            group.name: gumbel_ranks(self.scores[group.name], temperature, self.generator)
            for group in self.trace.cuttable
        }

    def _order(self) -> list[FloatArray]:
        """Per group: importance, or chance."""
        if self.scores is None:
            return [self.generator.random(g.units) for g in self.trace.cuttable]
        return [self.scores[g.name] for g in self.trace.cuttable]

    def _scale(self, name: str) -> FloatArray | None:
        """Weights of swaps: importance, but no unit is beyond reach."""
        if self.scores is None or name not in self.scores:
            return None
        if name not in self._weights:
            mine = np.asarray(self.scores[name], dtype=np.float64)
            self._weights[name] = np.maximum(mine, 1e-3 * max(float(mine.mean()), 1e-300))
        return self._weights[name]


def _count(genes: BoolArray, rate: float, generator: np.random.Generator) -> int:
    """How many genes to swap: the rate's share of those that stay, rounded at random."""
    wanted = rate * int(genes.sum())
    return math.floor(wanted) + int(generator.random() < wanted % 1)


def _ranks(scores: FloatArray) -> FloatArray:
    """Ranks in [0, 1), a larger score a higher rank; the first of equal ones is the higher."""
    order = np.argsort(-scores, kind="stable")
    ranks = np.empty(scores.size)
    ranks[order] = np.arange(scores.size)[::-1] / scores.size
    return ranks
