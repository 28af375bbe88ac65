"""NSGA-II by ask and tell: several objectives, elitist (paper K, equation 2)."""

from collections.abc import Callable, Sequence
from typing import Generic

import numpy as np

from prunus.search.individual import Genome, Individual
from prunus.search.pareto import FloatArray, crowding, fronts, nondominated, require_pymoo


class Nsga2(Generic[Genome]):
    """Parents and children compete; fronts survive in order, the last one by crowding distance.

    Source: Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE TEC 2002:
    survival by rank and crowding (section III-C), parents by binary tournament on both. Individuals
    with one key count once.

    Args:
        initial: First population; its size is the population's.
        breed: Makes a child of two parents.
        generations: New ones after the initial one.
        seed: Of tournaments.

    Attributes:
        archive: Of everything told of those that no other dominates, in its order; of equal ones the
            first. Other genomes are let go: together they can take gigabytes.
        told: What was told of last, in its order.

    Raises:
        MissingExtraError: pymoo is not installed.
    """

    def __init__(
        self,
        initial: Sequence[Genome],
        breed: Callable[[Genome, Genome], Genome],
        *,
        generations: int,
        seed: int = 0,
    ) -> None:
        require_pymoo()
        if not initial:
            raise ValueError("the first population is empty")
        self._initial, self._breed = list(initial), breed
        self._generations = generations
        self._generator = np.random.default_rng(seed)
        self._told = 0
        self._asked: list[Genome] = []
        self._population: list[Individual[Genome]] = []
        self._fitness: list[tuple[int, float]] = []
        self.archive: list[Individual[Genome]] = []
        self.told: list[Individual[Genome]] = []

    @property
    def generation(self) -> int:
        """New generations told of."""
        return max(0, self._told - 1)

    @property
    def done(self) -> bool:
        """Whether the search is over."""
        return self._told > self._generations

    @property
    def front(self) -> list[Individual[Genome]]:
        """The archive, by first objective."""
        return sorted(self.archive, key=lambda one: (one.values, one.key))

    def ask(self) -> list[Genome]:
        """Genomes to score next; empty when the search is over. Asking twice gives the same."""
        if not self._asked and not self.done:
            self._asked = self._children() if self._told else self._initial
        return list(self._asked)

    def tell(self, values: FloatArray, keys: Sequence[str]) -> None:
        """Scores of what was asked for, ``[asked, objectives]``, in its order; lower is better.

        Raises:
            ValueError: Not as many as were asked for, or a score is not finite.
        """
        if not self._asked or not len(self._asked) == len(values) == len(keys):
            raise ValueError(f"{len(values)} scores for {len(self._asked)} genomes asked for")
        if not np.isfinite(values).all():
            raise ValueError("a score is not finite")
        self.told = [
            Individual(genome, tuple(map(float, row)), key)
            for genome, row, key in zip(self._asked, values, keys, strict=True)
        ]
        known = [*self.archive, *self.told]
        self.archive = [known[k] for k in nondominated(_values(known))]
        distinct = {one.key: one for one in reversed([*self._population, *self.told])}
        self._survive(list(reversed(distinct.values())))
        self._told += 1
        self._asked = []

    def _survive(self, pool: list[Individual[Genome]]) -> None:
        """Fill the population front by front; of the front that does not fit, the least crowded."""
        values = _values(pool)
        size = len(self._initial)
        self._population, self._fitness = [], []
        for rank, front in enumerate(fronts(values)):
            distance = crowding(values[front])
            # Ties by position: pymoo's own survival draws them, from the global random state.
            order = np.argsort(-distance, kind="stable")[: size - len(self._population)]
            self._population += [pool[front[k]] for k in order]
            self._fitness += [(rank, -float(distance[k])) for k in order]
            if len(self._population) == size:
                return

    def _children(self) -> list[Genome]:
        return [self._breed(self._winner(), self._winner()) for _ in self._initial]

    def _winner(self) -> Genome:
        """The better of two: by rank, then by crowding."""
        a, b = (int(k) for k in self._generator.integers(len(self._population), size=2))
        better = a if self._fitness[a] <= self._fitness[b] else b
        return self._population[better].genome


def _values(individuals: Sequence[Individual[Genome]]) -> FloatArray:
    return np.array([one.values for one in individuals], dtype=np.float64)
