"""How large every block gets: by the user's rank or energy, or by the budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from prunus.errors import BudgetError
from prunus.graph import Trace
from prunus.graph.file_size import file_bytes
from prunus.lowrank.blocks import Block, Cost, Ranks, elements
from prunus.lowrank.options import LowRankOptions
from prunus.method import Budget

Sizes = tuple[Ranks | None, ...]
"""Of every block; None leaves it whole."""
_HALVINGS = 60  # of the energy: finer than any two of its steps that a float tells apart


def no_layer(method: str) -> str:
    """Says that a method has nothing to factorize, and what to do."""
    return (
        f"method '{method}' finds no layer to factorize: let it factorize more (embeddings, "
        "classifier, ignore), or take another method"
    )


@dataclass(frozen=True, eq=False)
class Sizing:
    """Blocks, the network they are in, and the limit.

    Attributes:
        blocks: What may be factorized.
        trace: Of the network.
        budget: The limit.
        method: Name, for messages.
    """

    blocks: Sequence[Block]
    trace: Trace
    budget: Budget
    method: str

    @property
    def quantity(self) -> Cost:
        """In which a block must be smaller than whole to be factorized."""
        return "macs" if self.budget.quantity == "macs" else "params"

    @cached_property
    def _dense(self) -> int:
        return self.budget.measure(self.trace, {})

    @cached_property
    def _limit(self) -> int:
        return self.budget.limit(self._dense)

    def at(self, ranks_of: Callable[[Block], Ranks]) -> Sizes:
        """Ranks by a rule; blocks that would not get smaller stay whole."""
        return tuple(self._sized(block, ranks_of(block)) for block in self.blocks)

    def _sized(self, block: Block, ranks: Ranks) -> Ranks | None:
        return ranks if block.is_smaller(ranks, self.quantity) else None

    def cost(self, sizes: Sizes) -> int:
        """Of the whole network, in the budget's quantity; of a file, at most."""
        chosen = [(b, r) for b, r in zip(self.blocks, sizes, strict=True) if r is not None]
        if self.budget.quantity == "macs":
            return self._dense + sum(b.macs(r) - b.dense_macs for b, r in chosen)
        if self.budget.quantity == "params":
            return self._dense + sum(
                elements(b.shapes(r)) - elements(b.dense_shapes) for b, r in chosen
            )
        return self._file_bytes(chosen) if chosen else self._dense

    def _file_bytes(self, chosen: Sequence[tuple[Block, Ranks]]) -> int:
        shapes, widths = dict(self.trace.shape.tensors), dict(self.trace.stored)
        for block, ranks in chosen:
            width = self.trace.stored[f"{block.layers[0].path}.weight"]
            for name in block.dense_shapes:
                widths.pop(name, None)
            factors = block.shapes(ranks)
            shapes.update(factors)
            widths.update(dict.fromkeys(factors, width))
        return file_bytes(shapes, widths)

    def by_options(self, options: LowRankOptions) -> Sizes:
        """Ranks as the user, or else the budget, says.

        Raises:
            BudgetError: They cost more than the budget, or no ranks meet it.
        """
        rank, energy = options.rank, options.energy
        if rank is not None:
            return self._within(self.at(lambda b: b.at_fraction(rank)), f"rank={rank:g}")
        if energy is not None:
            return self._within(self.at(lambda b: b.keeping(energy)), f"energy={energy:g}")
        return self._by_budget()

    def require_reachable(self, options: LowRankOptions) -> None:
        """What ``by_options`` refuses and shapes alone tell: no spectrum is computed.

        Raises:
            BudgetError: The rank given costs more than the budget, or rank 1 does.
        """
        if (rank := options.rank) is not None:
            self._within(self.at(lambda b: b.at_fraction(rank)), f"rank={rank:g}")
        elif self._dense > self._limit:
            self._least()

    def _within(self, sizes: Sizes, told: str) -> Sizes:
        if (cost := self.cost(sizes)) > self._limit:
            raise BudgetError(
                f"target {self.budget.quantity}={self.budget.value:g} allows {self._limit}, "
                f"{told} of method '{self.method}' leaves {cost}: lower it, or leave it out and let "
                "the target decide"
            )
        return sizes

    def _by_budget(self) -> Sizes:
        """The highest common energy of every mode within the limit, then single ranks while one more fits."""
        if self._dense <= self._limit:
            return (None,) * len(self.blocks)
        least = self._least()
        low, high = 0.0, 1.0
        best = self._at_energy(high)
        if self.cost(best) <= self._limit:
            return best  # nothing is lost at less than the limit
        best = least
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            sizes = self._at_energy(middle)
            if self.cost(sizes) <= self._limit:
                low, best = middle, sizes
            else:
                high = middle
        return self._filled(best)

    def _least(self) -> Sizes:
        """Rank 1 for every block.

        Raises:
            BudgetError: That costs more than the budget.
        """
        if not self.blocks:
            raise BudgetError(
                f"target {self.budget.quantity}={self.budget.value:g} allows {self._limit} of "
                f"{self._dense}, but {no_layer(self.method)}"
            )
        least = self.at(lambda b: (1,) * len(b.full))
        if (cost := self.cost(least)) > self._limit:
            raise BudgetError(
                f"target {self.budget.quantity}={self.budget.value:g} allows {self._limit}, but at "
                f"least {cost} remain ({cost / self._dense:.2%} of {self._dense}) where method "
                f"'{self.method}' gives every layer rank 1: raise the target, or let it factorize "
                "more (embeddings, classifier, ignore)"
            )
        return least

    def _at_energy(self, energy: float) -> Sizes:
        return self.at(lambda b: b.at_energy(energy))

    def _filled(self, sizes: Sizes) -> Sizes:
        """Take what the limit has left a rank at a time, until no single one fits any more."""
        now = list(sizes)
        queue = [(k, m) for k, r in enumerate(now) if r is not None for m in range(len(r))]
        while queue:
            fits, waits = [], []
            for k, mode in queue:
                ranks = now[k]
                if ranks is None:
                    continue
                if (wider := self.blocks[k].widened(ranks, mode)) == ranks:
                    waits.append((k, mode))
                    continue
                trial = [*now[:k], self._sized(self.blocks[k], wider), *now[k + 1 :]]
                if self.cost(tuple(trial)) <= self._limit:
                    now = trial
                    fits.append((k, mode))
            # Costs only grow: a step that does not fit now never will. One that waits for the other
            # mode of its block is tried again as long as any other fits.
            queue = [*fits, *waits] if fits else []
        return tuple(now)
