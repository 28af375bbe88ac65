"""Which of many fail, found by testing them together: few do, and a test is dear."""

from collections.abc import Callable, Sequence

Failure = Callable[[Sequence[str]], str]
"""Tests some names together: the reason why they fail, or nothing."""


def culprits(names: Sequence[str], failure: Failure) -> dict[str, str]:
    """Those that have to go until the rest does not fail together, each with the reason.

    ``k`` of ``n`` that fail alone take about ``2 k log2(n / k)`` tests. Names that fail together and
    not apart are all taken, of the smallest set of the halving that fails: none can be trusted.

    Args:
        names: What is tested.
        failure: The test.
    """
    found: dict[str, str] = {}
    while rest := [name for name in names if name not in found]:
        why = failure(rest)
        if not why:
            break
        found |= _apart(rest, why, failure)
    return found


def _apart(names: Sequence[str], why: str, failure: Failure) -> dict[str, str]:
    """Culprits among names that fail together, by halves."""
    middle = len(names) // 2
    found: dict[str, str] = {}
    for half in (names[:middle], names[middle:]) if middle else ():
        reason = failure(half)
        if reason:
            found |= _apart(half, reason, failure)
    return found or dict.fromkeys(names, why)
