"""Progress bars with ETA in a terminal, plain lines elsewhere."""

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINES_OF = frozenset({"compare"})  # phases whose every step is worth a line in a log


@dataclass
class _Phase:
    name: str
    total: int
    task: TaskID
    done: int = 0
    begin: float = field(default_factory=time.perf_counter)


class RichProgress:
    """Implements ``prunus.progress.Progress``; phases may lie in one another.

    Args:
        console: Of the standard error, so that tables can be piped.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._phases: list[_Phase] = []

    def __enter__(self) -> Self:
        """Show the bars."""
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take them away."""
        self._bars.stop()

    def start(self, phase: str, total: int) -> None:
        """Begin a phase inside the present one."""
        task = self._bars.add_task("  " * len(self._phases) + phase, total=total, values="")
        self._phases.append(_Phase(phase, total, task))

    def advance(self, n: int = 1, **values: float) -> None:
        """Count steps of the innermost phase."""
        if not self._phases:
            return
        now = self._phases[-1]
        now.done += n
        if values:
            text = " ".join(f"{name} {value:.4g}" for name, value in values.items())
            self._bars.update(now.task, advance=n, values=text)
        else:
            self._bars.update(now.task, advance=n)
        if now.name in _LINES_OF:
            self._line(f"{now.name}: {now.done} of {now.total}, {self._seconds(now)}")

    def finish(self) -> None:
        """End the innermost phase."""
        if not self._phases:
            return
        ended = self._phases.pop()
        self._bars.remove_task(ended.task)
        if not self._phases and ended.name not in _LINES_OF:
            self._line(f"{ended.name}: {self._seconds(ended)}")

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text, highlight=False, markup=False)

    @staticmethod
    def _seconds(phase: _Phase) -> str:
        return f"{time.perf_counter() - phase.begin:.1f} s"
