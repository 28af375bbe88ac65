"""Order candidates so that those with the same beginning follow one another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

from prunus.plan import Plan

Signatures = tuple[str, ...]


def in_sharing_order(
    plans: Mapping[str, Plan], signatures: Callable[[Plan], Signatures]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys in an order in which common beginnings are adjacent, with the boundaries worth keeping.

    A boundary is worth keeping for a candidate when another of them agrees with it up to there and
    no further, seen from the candidates in between: those are the nodes of the tree of beginnings.

    Args:
        plans: By key.
        signatures: A hash per boundary of what a plan makes of all before it (see ``prefix``).
    """
    found = sorted((signatures(plan), key) for key, plan in plans.items())
    shared = [_agreed(a, b) for (a, _), (b, _) in pairwise(found)]
    for index, (_, key) in enumerate(found):
        after = _descending(shared[index:])
        before = _descending(shared[:index][::-1])
        # Boundary n - 1 is the last of n that agree; none agree: nothing to keep.
        yield key, tuple(sorted({count - 1 for count in (*after, *before) if count}))


def _agreed(a: Signatures, b: Signatures) -> int:
    """At how many boundaries, from the first on, two plans agree."""
    count = 0
    for mine, theirs in zip(a, b, strict=True):
        if mine != theirs:
            break
        count += 1
    return count


def _descending(counts: Sequence[int]) -> list[int]:
    """Each count that is below all before it; zero ends the row."""
    found: list[int] = []
    for count in counts:
        if count == 0:
            break
        if not found or count < found[-1]:
            found.append(count)
    return found
