"""Who becomes a parent."""

from collections.abc import Iterable
from typing import TypeVar

from prunus.search.individual import Individual

Genome = TypeVar("Genome")


def best_distinct(
    individuals: Iterable[Individual[Genome]], count: int
) -> list[Individual[Genome]]:
    """The best by first objective, one of each key; ties go to the smaller key.

    Copies of one individual would make a generation of clones: each counts once.

    >>> found = best_distinct([Individual(0, (2.0,), "b"), Individual(1, (1.0,), "a")], 1)
    >>> [one.key for one in found]
    ['a']
    """
    found: dict[str, Individual[Genome]] = {}
    for one in sorted(individuals, key=lambda i: (i.values[0], i.key)):
        found.setdefault(one.key, one)
    return list(found.values())[:count]
