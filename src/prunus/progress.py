"""How long work tells that it moves: a protocol, and one that says nothing. No torch."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

Step = TypeVar("Step")


class Progress(Protocol):
    """Receives the steps of a phase; the command line draws a bar with ETA from them."""

    def start(self, phase: str, total: int) -> None:
        """Begin a phase of ``total`` steps."""

    def advance(self, n: int = 1, **values: float) -> None:
        """Count ``n`` steps done, with the latest values (loss, top-1) to show."""

    def finish(self) -> None:
        """End the phase."""


class Silent:
    """Progress that shows nothing: the default of every Python function."""

    def start(self, phase: str, total: int) -> None:
        """Do nothing."""

    def advance(self, n: int = 1, **values: float) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


class _Counting:
    """Passes everything on, and knows how many phases are open."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.open = 0

    def start(self, phase: str, total: int) -> None:
        self.open += 1
        self._progress.start(phase, total)

    def advance(self, n: int = 1, **values: float) -> None:
        self._progress.advance(n, **values)

    def finish(self) -> None:
        self.open -= 1
        self._progress.finish()


def counted(steps: Iterable[Step], progress: Progress) -> Iterator[Step]:
    """Steps of an open phase, each told as done when the next is asked for."""
    for step in steps:
        yield step
        progress.advance()


@contextmanager
def phases_ended(progress: Progress) -> Iterator[Progress]:
    """End the phases that an error leaves open: later steps would count as theirs.

    Args:
        progress: Told of all that is told to what the block is given.
    """
    counting = _Counting(progress)
    try:
        yield counting
    finally:
        for _ in range(counting.open):
            progress.finish()
