"""A generational genetic algorithm with one objective, by ask and tell (paper K, stages 1 to 8)."""

import math
from collections.abc import Callable, Sequence
from typing import Generic

import numpy as np

from prunus.search.individual import Genome, Individual
from prunus.search.selection import best_distinct


class GeneticSearch(Generic[Genome]):
    """The best ``parents`` of every generation stay and breed the other ``population - parents``.

    ``ask`` gives the genomes whose scores are wanted next, ``tell`` takes them; the search never
    scores by itself. It ends after ``generations`` new generations, or when the best score has fallen
    by no more than ``tolerance`` over the last ``patience`` of them.

    Args:
        initial: First population (stage 1); its size is the population's.
        breed: Makes a child of two parents: crossover, then mutation (stages 4 and 5).
        parents: How many are selected (stage 3): at least 1, fewer than the population unless no
            generation follows.
        generations: New ones after the initial one; 0: the best of the initial population.
        patience: Generations without progress that end the search, at least 1; None: never.
        tolerance: What counts as progress, in units of the score.
        seed: Of who breeds with whom.

    Attributes:
        generation: How many new generations were told of so far.
        selected: The best so far, best first, each key once.
    """

    def __init__(
        self,
        initial: Sequence[Genome],
        breed: Callable[[Genome, Genome], Genome],
        *,
        parents: int,
        generations: int,
        patience: int | None = None,
        tolerance: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not initial or not 1 <= parents <= len(initial):
            raise ValueError(f"{parents} parents cannot be selected from {len(initial)} genomes")
        if generations and parents == len(initial):
            raise ValueError(f"{parents} parents of {parents} leave no child to breed")
        self._initial, self._breed = list(initial), breed
        self._parents, self._generations = parents, generations
        self._patience, self._tolerance = patience, tolerance
        self._generator = np.random.default_rng(seed)
        self._asked: list[Genome] = []
        self._trail: list[float] = []
        self.selected: list[Individual[Genome]] = []

    @property
    def generation(self) -> int:
        """New generations told of."""
        return max(0, len(self._trail) - 1)

    @property
    def best(self) -> Individual[Genome]:
        """The best one told of (stage 8); there is none before the first ``tell``."""
        return self.selected[0]

    @property
    def done(self) -> bool:
        """Whether the search is over (stage 7)."""
        return bool(self._trail) and (self.generation >= self._generations or self._converged())

    def ask(self) -> list[Genome]:
        """Genomes to score next; empty when the search is over. Asking twice gives the same."""
        if not self._asked and not self.done:
            self._asked = self._children() if self._trail else self._initial
        return list(self._asked)

    def tell(self, scores: Sequence[float], keys: Sequence[str]) -> None:
        """Scores of what was asked for, in its order; lower is better.

        Args:
            scores: Infinite for who is certainly not among the best ``parents``.
            keys: Equal for genomes that mean the same.

        Raises:
            ValueError: Not as many as were asked for, a score is no number, or nothing was asked.
        """
        if not self._asked or not len(self._asked) == len(scores) == len(keys):
            raise ValueError(f"{len(scores)} scores for {len(self._asked)} genomes asked for")
        if any(math.isnan(score) for score in scores):
            raise ValueError("a score is no number")
        told = [
            Individual(genome, (float(score),), key)
            for genome, score, key in zip(self._asked, scores, keys, strict=True)
        ]
        self.selected = best_distinct([*self.selected, *told], self._parents)
        self._trail.append(self.best.values[0])
        self._asked = []

    def _children(self) -> list[Genome]:
        count = len(self._initial) - self._parents
        return [self._breed(*self._pair()) for _ in range(count)]

    def _pair(self) -> tuple[Genome, Genome]:
        """Two different parents, in random order; the only one twice."""
        if len(self.selected) == 1:
            return self.selected[0].genome, self.selected[0].genome
        a, b = self._generator.choice(len(self.selected), size=2, replace=False)
        return self.selected[a].genome, self.selected[b].genome

    def _converged(self) -> bool:
        if self._patience is None or self.generation < self._patience:
            return False
        fallen = self._trail[-1 - self._patience] - self._trail[-1]
        # Fitness is rounded to steps of 1e-4: a fall by just the tolerance must not hang on its bits.
        return fallen <= self._tolerance or math.isclose(fallen, self._tolerance, rel_tol=1e-6)
