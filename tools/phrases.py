"""What tables say alike."""

MISSING = "–"


def threads(count: int) -> str:
    """A number of threads.

    >>> threads(1)
    '1 thread'
    """
    return "1 thread" if count == 1 else f"{count} threads"
