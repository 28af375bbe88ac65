"""The whole trade-off of quality and cost in one search (paper K, equation 2)."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from prunus.candidates import Engine, Scored
from prunus.data.digest import tensors_digest
from prunus.method import Budget, Context, Decision, Quantity
from prunus.plan import Bits
from prunus.prune.chromosome import Chromosome
from prunus.prune.history import candidate_history
from prunus.prune.proposals import Proposals
from prunus.records import Front, FrontPoint, HistoryPoint
from prunus.search import Individual, Nsga2, hypervolume
from prunus.search.pareto import FloatArray

COST_STEP = 0.2
"""Standard deviation of the logarithm of a child's cost around its parents'."""


def decide_front(context: Context, proposals: Proposals) -> Decision:
    """Evolve a front between the budget and the dense network; the budget picks from it.

    Objectives are the fitness of equation 1, the share of executed MACs (parameters, too, if asked
    for), and whatever the budget limits: the pick is then on the front. The first population spreads
    evenly over the logarithm of the cost, from the budget to the dense network; a child's cost is drawn
    around its parents'. All candidates are seen on the same images, none is dropped on the way: places
    on a front are no ranking.

    The pick is the member of best fitness within the budget; what the budget then has left is
    filled with units, as in every other method.

    Raises:
        BudgetError: The budget cannot be reached.
        MissingExtraError: pymoo is not installed.
    """
    options, begin = proposals.options, time.perf_counter()
    costs = _Costs(context, proposals)
    search: Nsga2[Chromosome] = Nsga2(
        [proposals.initial(b, k) for k, b in enumerate(costs.spread(options.population))],
        lambda a, b: proposals.child(a, b, costs.between(a, b)),
        generations=options.generations,
        seed=context.seed,
    )
    scoring = options.scoring()
    known: dict[str, Scored] = {}
    every: list[Scored] = []
    seconds: list[float] = []
    volumes: list[float] = []
    points: list[HistoryPoint] = []
    context.progress.start("generations", options.generations + 1)
    with Engine.open(context, scoring) as engine:
        while genomes := search.ask():
            found = engine.score([proposals.encoding.candidate(g) for g in genomes])
            known |= {s.key: s for s in found}
            search.tell(costs.values(genomes, found), [s.key for s in found])
            costs.note(search.told)
            every += found
            seconds += [time.perf_counter() - begin] * len(found)
            volume = hypervolume(costs.scaled(search.front), np.ones(costs.objectives))
            volumes.append(volume)
            values = {"hypervolume": volume, "networks on the front": float(len(search.front))}
            points.append(
                HistoryPoint(
                    phase="search front",
                    step=search.generation,
                    seconds=seconds[-1],
                    values=values,
                )
            )
            context.progress.advance(hypervolume=volume)
            if _has_settled(volumes, options.patience, options.tolerance):
                break
        pick = costs.pick
        genome = proposals.fitted(pick.genome, context.budget)
        best = proposals.encoding.candidate(genome)
        (filled,) = engine.score([best])
        different, earlier = engine.evaluations, engine.earlier_seconds
    context.progress.finish()
    members = costs.points(search.front, pick, known)
    note = (
        f"genetic: front mode, {different} different networks, {len(members)} on the front; the "
        f"pick has fitness {pick.values[0]:.4f}, {filled.fitness:.4f} once it fills the budget"
    )
    return Decision(
        choice=best.choice,
        connections=best.connections,
        history=(*candidate_history("genetic", every, scoring.fitness, seconds), *points),
        evaluations=different,
        front=_front(context, members),
        notes=(note, *proposals.shortfall(genome, context.budget)),
        earlier_seconds=earlier,
    )


def _front(context: Context, members: Sequence[FrontPoint]) -> Front:
    """For the file, with what tells its network and weights from others."""
    weights = tensors_digest(dict(context.network.named_parameters()))
    return Front(source=context.trace.shape, weights=weights, points=tuple(members))


def _objectives(budget: Budget, named: Sequence[Quantity]) -> tuple[Quantity, ...]:
    """The costs that are asked for, and what the budget limits: a file's size goes with parameters."""
    limited: Quantity = "macs" if budget.quantity == "macs" else "params"
    return (*named, limited) if limited not in named else tuple(named)


def _has_settled(volumes: Sequence[float], patience: int | None, tolerance: float) -> bool:
    """Whether the hypervolume has grown by no more than a tolerance over some generations."""
    if patience is None or len(volumes) <= patience:
        return False
    return volumes[-1] - volumes[-1 - patience] <= tolerance


class _Costs:
    """Objectives of candidates, and budgets between the run's and the dense network."""

    def __init__(self, context: Context, proposals: Proposals) -> None:
        self._proposals = proposals
        self._trace, self._budget = context.trace, context.budget
        self._dense = self._budget.measure(self._trace, {})
        self._limit = min(self._budget.limit(self._dense), self._dense)
        self._names = _objectives(context.budget, proposals.options.objectives)
        self._whole = [Budget(quantity=n, value=1).measure(self._trace, {}) for n in self._names]
        self._worst = 0.0
        self._fittest: list[Individual[Chromosome]] = []
        self.objectives = 1 + len(self._names)

    def spread(self, count: int) -> list[Budget]:
        """Budgets from the run's own on, evenly in the logarithm of the cost."""
        costs = np.geomspace(max(self._limit, 1), self._dense, count, endpoint=False)
        return [self._absolute(cost) for cost in costs]

    def between(self, a: Chromosome, b: Chromosome) -> Budget:
        """A budget around the parents', between the run's own and the dense network's."""
        encoding, measure = self._proposals.encoding, self._budget.measure
        both = [measure(self._trace, encoding.neurons(one)) for one in (a, b)]
        step = COST_STEP * float(self._proposals.generator.standard_normal())
        drawn = float(np.sqrt(both[0] * both[1])) * np.exp(step)
        return self._absolute(min(max(drawn, self._limit), self._dense))

    def _absolute(self, cost: float) -> Budget:
        if cost <= self._limit:
            return self._budget
        # A share: an absolute limit of one or less would be read as one.
        return Budget(quantity=self._budget.quantity, value=min(1.0, cost / self._dense))

    def values(self, genomes: Sequence[Chromosome], scored: Sequence[Scored]) -> FloatArray:
        """Fitness, then executed costs as shares of the dense network's, ``[n, objectives]``."""
        rows = [
            [found.fitness, *self._shares(genome)]
            for genome, found in zip(genomes, scored, strict=True)
        ]
        values = np.array(rows, dtype=np.float64)
        if not self._worst:
            self._worst = max(float(values[:, 0].max()), 1e-4)
        return values

    def _shares(self, genome: Chromosome) -> list[float]:
        choice = self._proposals.encoding.active(genome)
        return [
            Budget(quantity=name, value=1).measure(self._trace, choice) / whole
            for name, whole in zip(self._names, self._whole, strict=True)
        ]

    def scaled(self, front: Sequence[Individual[Chromosome]]) -> FloatArray:
        """Objectives in units of the worst of the first population and of the dense network."""
        values = np.array([one.values for one in front], dtype=np.float64)
        values[:, 0] /= self._worst
        return values

    def note(self, told: Sequence[Individual[Chromosome]]) -> None:
        """Keep the fittest so far within the run's budget, which may limit what is no objective."""
        encoding, measure = self._proposals.encoding, self._budget.measure
        within = [
            one for one in told if measure(self._trace, encoding.active(one.genome)) <= self._limit
        ]
        # Of equal ones the first, as on the front.
        self._fittest = sorted([*self._fittest, *within], key=lambda one: one.values)[:1]

    @property
    def pick(self) -> Individual[Chromosome]:
        """The fittest of all within the run's budget; the first population has one."""
        return self._fittest[0]

    def points(
        self,
        front: list[Individual[Chromosome]],
        pick: Individual[Chromosome],
        known: Mapping[str, Scored],
    ) -> list[FrontPoint]:
        """The front for the record; with the pick, should bytes rank otherwise than parameters."""
        members = front if any(one.key == pick.key for one in front) else [*front, pick]
        return [self.point(one, known[one.key], chosen=one.key == pick.key) for one in members]

    def point(self, one: Individual[Chromosome], scored: Scored, *, chosen: bool) -> FrontPoint:
        """A member of the front for the record."""
        candidate = self._proposals.encoding.candidate(one.genome)
        cost = self._trace.cost(candidate.choice)
        return FrontPoint(
            macs=cost.macs,
            params=cost.params,
            fitness=one.values[0],
            kl=scored.kl,
            loss=scored.loss,
            top1=scored.top1,
            chosen=chosen,
            keep={name: Bits.pack(kept) for name, kept in candidate.choice.items()},
            connections=candidate.connections,
        )
