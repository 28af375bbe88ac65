"""Progress bars with ETA in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from prunus.cli.streams import silence

_LINES_OF = frozenset({"compare"})  # phases whose every step is worth a line in a log
_MOST_COUNTED = 9999  # of more steps the share is shown, not the number
_WIDE = 100  # columns of a terminal that has room for the time that has passed
_LEAST_BAR = 4


@dataclass
class _Phase:
    name: str
    total: int
    task: TaskID
    done: int = 0
    values: dict[str, float] = field(default_factory=dict)
    begin: float = field(default_factory=time.perf_counter)


class _Count(ProgressColumn):
    """How much of a phase is done: steps, or their share where they are many."""

    def render(self, task: Task) -> Text:
        """Draw it."""
        if task.total is None or task.total <= _MOST_COUNTED:
            return Text(f"{task.completed:.0f}/{task.total:.0f}")
        return Text(f"{int(task.percentage)} %")


class RichProgress:
    """Implements ``prunus.progress.Progress``; phases may lie in one another.

    Args:
        console: Of the standard error, so that tables can be piped.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        wide = console.width >= _WIDE
        bar = Column(ratio=1, min_width=_LEAST_BAR)  # what gives way: all others are read as text
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, table_column=bar),
            _Count(),
            *([TimeElapsedColumn()] if wide else []),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
        ]
        self._bars = Progress(
            *columns,
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal,
        )
        self._phases: list[_Phase] = []
        self._silent = False

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
        now.values |= values  # what is not told again is as it was
        self._bars.update(now.task, advance=n, values=_shown(now.values))
        if now.name in _LINES_OF:
            self._line(f"{now.name}: {now.done} of {now.total}, {self._seconds(now)}")

    def finish(self) -> None:
        """End the innermost phase."""
        if not self._phases:
            return
        ended = self._phases.pop()
        self._bars.remove_task(ended.task)
        if not self._phases and ended.name not in _LINES_OF:
            values = _shown(ended.values)
            self._line(f"{ended.name}: {self._seconds(ended)}{', ' if values else ''}{values}")

    def _line(self, text: str) -> None:
        """A line where there is no terminal; a log that takes no more costs no run."""
        if self._console.is_terminal or self._silent:
            return
        try:
            self._console.print(text, highlight=False, markup=False)
        except OSError:
            self._silent = True
            silence(sys.stderr)

    @staticmethod
    def _seconds(phase: _Phase) -> str:
        return f"{time.perf_counter() - phase.begin:.1f} s"


def _shown(values: Mapping[str, float]) -> str:
    """Values in a line; a rate stands before its unit.

    >>> _shown({"best": 0.12344, "candidates/s": 8.312})
    'best 0.1234, 8.31 candidates/s'
    """
    parts = []
    for name, value in values.items():
        parts.append(f"{value:.3g} {name}" if name.endswith("/s") else f"{name} {value:.4g}")
    return ", ".join(parts)
