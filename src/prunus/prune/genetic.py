"""Genetic search over neurons and connections (paper K)."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import nn

from prunus.candidates import Engine, Scored
from prunus.errors import InputError
from prunus.graph import Inputs, Trace
from prunus.method import Budget, Configured, Context, Decision, Need, search_split, train_split
from prunus.prune.chromosome import Chromosome, Encoding, dropped_share
from prunus.prune.from_front import (
    decide_from_front,
    members_within,
    read_front,
    require_front,
    require_no_front_of,
)
from prunus.prune.front import decide_front
from prunus.prune.genetic_options import GeneticOptions
from prunus.prune.history import candidate_history
from prunus.prune.importance import importance_scores
from prunus.prune.proposals import Proposals
from prunus.records import HistoryPoint
from prunus.search import GeneticSearch
from prunus.search.pareto import require_pymoo


@final
class Genetic(Configured[GeneticOptions]):
    """Networks of one cost compete; the fittest breed.

    A chromosome holds a bit per neuron (a unit of a coupled group) and a bit per connection (a
    kernel of a convolution, a weight of a linear layer). Its fitness is, by equation 1 of the paper,
    ``L(N(W * c))``: the loss of the network with what it drops left out, batch-norm statistics
    measured anew, on the search split. Eight stages: 1 first population, 2 fitness, 3 selection of
    the best K, 4 crossover, 5 mutation with probability p_mut, 6 fitness of the children, 7 until a
    number of generations or convergence, 8 the best is what stays.

    ``mode="paper"``: random genes; the parents stay, the other N - K are bred from them: layers up to
    the break point p_c from one, the rest from the other; a mutation swaps kept and dropped genes.
    The paper is silent on what holds the budget: here every chromosome is widened or narrowed in its
    own proportions, by random genes, until it costs what is allowed.
    ``mode="guided"``: units are drawn by importance, layers are mixed one by one, mutations also move
    shares between layers, and fitness is ``KL(original || candidate)``. The first two chromosomes
    are what rankings would do.
    ``mode="front"``: equation 2, ``(F, FLOPS)``: quality and cost compete (NSGA-II), see ``front.py``.

    Source: Kuzmin, Menisov, Sabirov, 2024, doi 10.17586/2226-1494-2024-24-5-770-778.
    """

    name = "genetic"
    summary = (
        "the fittest of many networks of one cost breed (Kuzmin et al. 2024; also a Pareto front)"
    )
    needs = frozenset({Need.TRAIN, Need.SEARCH})
    options_type = GeneticOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.options.mode == "front" and self.options.front is None:
            require_pymoo()  # now, not after the dense network has been measured

    @property
    def files(self) -> tuple[Path, ...]:
        """A front that is taken up."""
        return () if self.options.front is None else (Path(self.options.front),)

    def require_applicable(self, network: nn.Module, inputs: Inputs) -> None:  # noqa: ARG002  # as in Method
        """A front that is taken up must be one, and of such a network."""
        if self.options.front is not None:
            require_front(Path(self.options.front), network)

    def require_uncut(self, network: nn.Module) -> None:
        """A front of the whole network has no place behind a cut of it."""
        if self.options.front is not None:
            require_no_front_of(Path(self.options.front), network)

    def require_repeatable(self, rounds: int) -> None:
        """A front is of one network, and each round has another."""
        if self.options.front is not None:
            raise InputError(
                f"option front={self.options.front!r} of method 'genetic' picks from networks that were "
                f"cut from one, and each of {rounds} rounds cuts another"
            )

    def require_reachable(self, network: nn.Module, trace: Trace, budget: Budget) -> None:  # noqa: ARG002  # as in Method
        """A front that is taken up must hold a network within the target."""
        if self.options.front is None:
            return
        front = read_front(path := Path(self.options.front))
        if front.source == trace.shape:  # else it is of what earlier steps lead to
            members_within(trace, budget, front, path)

    def decide(self, context: Context) -> Decision:
        """Evolve chromosomes, keep the best.

        Raises:
            InputError: A split is missing.
            BudgetError: The budget cannot be reached.
            MissingExtraError: ``mode="front"`` without pymoo.
        """
        options = self.options.settled()
        if options.front is not None:
            return decide_from_front(context, Path(options.front))
        train_split(context, self)
        search_split(context, self)
        scores = (
            importance_scores(context, options.importance)
            if options.sampling == "importance"
            else None
        )
        proposals = Proposals(
            encoding=Encoding(context.network, context.trace),
            trace=context.trace,
            options=options,
            scores=scores,
            # Apart from who breeds with whom, which the search draws from the seed itself.
            generator=np.random.default_rng(np.random.SeedSequence(context.seed).spawn(1)[0]),
        )
        if options.mode == "front":
            return decide_front(context, proposals)
        return _decide_one(context, proposals)


def _decide_one(context: Context, proposals: Proposals) -> Decision:
    """One objective: the best within the budget."""
    options, budget, begin = proposals.options, context.budget, time.perf_counter()
    search: GeneticSearch[Chromosome] = GeneticSearch(
        [proposals.initial(budget, number) for number in range(options.population)],
        lambda a, b: proposals.child(a, b, budget),
        parents=options.parents,
        generations=options.generations,
        patience=options.patience,
        tolerance=options.tolerance,
        seed=context.seed,
    )
    known: list[Scored] = []
    seconds: list[float] = []
    points: list[HistoryPoint] = []
    progress = context.progress
    progress.start("generations", options.generations + 1)
    with Engine.open(context, options.scoring()) as engine:
        while genomes := search.ask():
            found = _score(engine, proposals, search, genomes)
            search.tell([_rank_value(s) for s in found], [s.key for s in found])
            known += found
            seconds += [time.perf_counter() - begin] * len(found)
            points.append(_generation(search, found, seconds[-1]))
            progress.advance(best=search.best.values[0])
        different, execution = engine.evaluations, engine.execution
        earlier = engine.earlier_seconds
    progress.finish()
    best = proposals.encoding.candidate(search.best.genome)
    zeroed = dropped_share(search.best.genome)
    fitness = options.scoring().fitness
    note = (
        f"genetic: {options.mode} mode, {search.generation} generations after the first population, "
        f"{different} different networks in {execution}"
    )
    notes = [note]
    if zeroed:
        zero = proposals.encoding.zero_share(search.best.genome)
        earlier_ones = (
            f", {zero:.1%} with what earlier rounds hold at zero" if zero > zeroed else ""
        )
        notes.append(f"genetic: {zeroed:.1%} of the connection genes are 0{earlier_ones}")
    notes += proposals.shortfall(search.best.genome, budget)
    return Decision(
        choice=best.choice,
        connections=best.connections,
        history=(*candidate_history("genetic", known, fitness, seconds), *points),
        evaluations=different,
        notes=tuple(notes),
        earlier_seconds=earlier,
    )


def _score(
    engine: Engine,
    proposals: Proposals,
    search: GeneticSearch[Chromosome],
    genomes: Sequence[Chromosome],
) -> list[Scored]:
    """Score new genomes beside the parents, who are known: only who can join them is seen in full."""
    options = proposals.options
    elders = [one.genome for one in search.selected]
    candidates = [proposals.encoding.candidate(genome) for genome in (*elders, *genomes)]
    scored = engine.score(candidates, top=options.parents if options.halving else None)
    return scored[len(elders) :]


def _rank_value(scored: Scored) -> float:
    """The fitness; infinite for who was dropped: it is not among the best."""
    return scored.fitness if scored.complete else float("inf")


def _generation(
    search: GeneticSearch[Chromosome], found: Sequence[Scored], seconds: float
) -> HistoryPoint:
    values = {
        "best of the generation": min(map(_rank_value, found)),
        "mean of the parents": float(np.mean([one.values[0] for one in search.selected])),
        "best_fitness": search.best.values[0],
    }
    finite = {name: value for name, value in values.items() if np.isfinite(value)}
    return HistoryPoint(
        phase="search by generation", step=search.generation, seconds=seconds, values=finite
    )
