"""How long work tells that it moves: a protocol, and one that says nothing. No torch."""

from typing import Protocol


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
