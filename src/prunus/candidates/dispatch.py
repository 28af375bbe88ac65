"""Tasks for workers that may die: who has which, what is lost, when a task is given up.

Processes and Ray differ in how a worker is started, spoken to and found dead (``Crew``); what
follows from it is the same for both: ``Dispatcher`` on this side, ``Worker`` on the other.
"""

import pickle
from collections import Counter, deque
from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, final

from prunus.candidates.task import Result, Task
from prunus.candidates.worker import Failure
from prunus.errors import InputError, PrunusError

ATTEMPTS = 3  # Deaths of workers on one task, or in a row while starting, before it is given up.

WorkerT = TypeVar("WorkerT", bound=Hashable)


class WorkerLostError(PrunusError):
    """Workers die again and again on one task, or before their first."""


@dataclass(frozen=True)
class Lost:
    """A worker is dead.

    Attributes:
        reason: How it died.
        hopeless: Another would die of the same before its first task.
    """

    reason: str
    hopeless: bool = False


class Crew(Protocol[WorkerT]):
    """Workers of one kind. A worker answers once after ``hire``, then once to each ``give``."""

    def hire(self) -> WorkerT:
        """Start a worker; its first answer says that it is ready, or why it cannot be."""

    def give(self, worker: WorkerT, task: Task) -> None:
        """Hand a task to an idle worker; a dead one shows in ``hear``."""

    def hear(self) -> Sequence[tuple[WorkerT, bytes | Lost]]:
        """Wait until a worker answers (see ``Worker``) or dies; a dead one is forgotten."""

    def let_go(self, worker: WorkerT) -> None:
        """Kill an idle worker."""

    def dismiss(self) -> None:
        """Kill all workers. May be called twice."""


@final
class Dispatcher(Generic[WorkerT]):
    """Keeps a crew busy with one task for each worker.

    Args:
        crew: The workers, none started yet.
        size: How many to start at most.
    """

    def __init__(self, crew: Crew[WorkerT], size: int) -> None:
        self._crew = crew
        self._size = size
        self._turn = 0
        self._failed_starts = 0
        self._starting: set[WorkerT] = set()
        self._idle: set[WorkerT] = set()
        # A task of an earlier turn, whose caller stopped early, is finished and then forgotten.
        self._busy: dict[WorkerT, tuple[int, Task]] = {}

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in the order in which they end; a later call puts an end to this one.

        A worker that answered has its next task before the result is yielded, so that it works
        while the caller stores. When a task fails, results already here are yielded first.

        Raises:
            WorkerLostError: A task cost ``ATTEMPTS`` workers, or no worker comes up.
            Exception: What the scorer raised, or the making of it.
        """
        self._turn += 1
        turn = self._turn
        try:
            failure = yield from self._run(tasks, turn)
        except GeneratorExit:
            raise  # the caller has enough; the workers may be wanted again
        except BaseException:
            if self._turn == turn:
                self.dismiss()  # at an interrupt, a message may be half sent
            raise
        if failure is not None:
            raise failure

    def dismiss(self) -> None:
        """Kill the workers; the next run starts others."""
        self._turn += 1
        self._failed_starts = 0
        self._crew.dismiss()
        self._starting.clear()
        self._idle.clear()
        self._busy.clear()

    def _run(self, tasks: Sequence[Task], turn: int) -> Generator[Result, None, Exception | None]:
        waiting, deaths, left = deque(tasks), Counter[Task](), len(tasks)
        self._occupy(waiting)
        while left:
            results, failure = self._listen(waiting, deaths)
            if failure is None:
                self._occupy(waiting)
            for result in results:
                yield result
                if self._turn != turn:
                    raise RuntimeError("a later run or the end has stopped these results")
            left -= len(results)
            if failure is not None:
                return failure
        return None

    def _occupy(self, waiting: deque[Task]) -> None:
        while waiting and self._idle:
            worker, task = self._idle.pop(), waiting.popleft()
            self._busy[worker] = self._turn, task
            self._crew.give(worker, task)
        while (
            len(self._starting) < len(waiting)
            and len(self._starting) + len(self._idle) + len(self._busy) < self._size
        ):
            self._starting.add(self._crew.hire())

    def _listen(
        self, waiting: deque[Task], deaths: Counter[Task]
    ) -> tuple[list[Result], Exception | None]:
        results: list[Result] = []
        failures: list[Exception | None] = []
        for worker, word in self._crew.hear():
            if worker in self._starting:
                failures.append(self._started(worker, word))
            elif isinstance(word, Lost):
                failures.append(self._bury(worker, word, waiting, deaths))
            else:
                failures.append(self._finished(worker, word, results))
        return results, next((failure for failure in failures if failure is not None), None)

    def _started(self, worker: WorkerT, word: bytes | Lost) -> Exception | None:
        self._starting.discard(worker)
        if isinstance(word, Lost):
            self._failed_starts += 1
            if word.hopeless or self._failed_starts == ATTEMPTS:
                self._failed_starts = 0
                return WorkerLostError(f"a worker died while it was starting: {word.reason}")
            return None
        outcome = pickle.loads(word)
        if isinstance(outcome, Failure):
            self._crew.let_go(worker)
            return outcome.unwrap()
        self._failed_starts = 0
        self._idle.add(worker)
        return None

    def _finished(self, worker: WorkerT, word: bytes, results: list[Result]) -> Exception | None:
        turn, _ = self._busy.pop(worker)
        self._idle.add(worker)
        if turn != self._turn:
            return None
        outcome = pickle.loads(word)
        if isinstance(outcome, Failure):
            return outcome.unwrap()
        results.append(outcome)
        return None

    def _bury(
        self, worker: WorkerT, word: Lost, waiting: deque[Task], deaths: Counter[Task]
    ) -> Exception | None:
        self._idle.discard(worker)
        turn, task = self._busy.pop(worker, (0, None))
        if task is None or turn != self._turn:
            return None
        deaths[task] += 1
        if deaths[task] == ATTEMPTS:
            return WorkerLostError(
                f"candidate '{task.key}', images {task.start} to {task.stop}, was given up: its "
                f"worker died {ATTEMPTS} times, {word.reason}; use fewer workers or more memory"
            )
        waiting.appendleft(task)
        return None


def require_counts(**counts: object) -> None:
    """Refuse a number of workers or threads below one.

    Raises:
        InputError: Names the argument and its value.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"argument '{name}' is {value!r}: give a whole number of 1 or more")
