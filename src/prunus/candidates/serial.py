"""Tasks run where the search runs: the default, and what the other executors must equal."""

from collections.abc import Iterator, Sequence
from typing import final

from prunus.candidates.task import Result, Scoring, Task


@final
class SerialExecutor:
    """One task after the other in this process, each when its result is asked for.

    Args:
        scoring: Does a task.
    """

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in the order of the tasks; the next task starts once the next result is asked for."""
        return map(self._scoring, tasks)

    def close(self) -> None:
        """Nothing is held."""
