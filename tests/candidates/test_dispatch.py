"""Tasks and workers that die, on a crew that does as it is told."""

import itertools
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.candidates.dispatch import Dispatcher, Lost, WorkerLostError
from prunus.candidates.task import Result, Task
from prunus.candidates.worker import Failure
from prunus.errors import InputError
from tests.candidates.fake_scoring import task


class FakeCrew:
    """Workers that answer, fail or die, or say nothing yet, in turn as a list of words says."""

    def __init__(self, words: Iterator[str]) -> None:
        self.words = words
        self.hired = 0
        self.alive: set[int] = set()
        self.owed: dict[int, Task | None] = {}
        self.doomed: set[int] = set()
        self.interrupted = False

    def hire(self) -> int:
        self.hired += 1
        self.alive.add(self.hired)
        self.owed[self.hired] = None
        return self.hired

    def give(self, worker: int, task: Task) -> None:
        assert worker in self.alive and worker not in self.owed
        self.owed[worker] = task

    def hear(self) -> list[tuple[int, bytes | Lost]]:
        if self.interrupted:
            raise KeyboardInterrupt
        assert self.owed, "would be waited for without end"
        heard = [(worker, next(self.words)) for worker in self.owed]
        dead, self.doomed = self.doomed - self.owed.keys(), self.doomed & self.owed.keys()
        self.alive -= dead
        told = [(worker, self.say(worker, word)) for worker, word in heard if word != "silence"]
        return [*told, *((worker, Lost("while idle")) for worker in dead)]

    def say(self, worker: int, word: str) -> bytes | Lost:
        task = self.owed.pop(worker)
        if word in {"death", "end"}:
            self.alive.remove(worker)
            return Lost("in a test", hopeless=word == "end")
        if word == "error":
            return pickle.dumps(Failure(InputError("told"), "there"))
        return pickle.dumps(None if task is None else blank(task))

    def let_go(self, worker: int) -> None:
        assert worker not in self.owed
        self.alive.remove(worker)

    def dismiss(self) -> None:
        self.alive.clear()
        self.owed.clear()


def blank(task: Task) -> Result:
    nothing = np.zeros(0, np.float32)
    return Result(task.key, task.start, task.stop, nothing, nothing, nothing > 0, b"", 0.0)


def crew_of(*words: str) -> FakeCrew:
    return FakeCrew(iter(words))


@given(
    st.integers(1, 4),
    st.integers(0, 12),
    st.lists(st.sampled_from(["answer", "silence", "death"]), max_size=60),
)
def test_every_task_ends_once_unless_three_workers_died(
    size: int, tasks: int, words: list[str]
) -> None:
    crew = FakeCrew(itertools.chain(words, itertools.repeat("answer")))
    keys, found, lost = [str(n) for n in range(tasks)], [], False
    results = Dispatcher(crew, size).run([task(key) for key in keys])
    try:
        for result in results:
            found.append(result.key)
            assert len(crew.alive) <= min(size, tasks)
    except WorkerLostError:
        lost = True
    assert len(set(found)) == len(found)
    assert words.count("death") >= 3 if lost else sorted(found) == sorted(keys)


@pytest.mark.parametrize(("words", "hired"), [(["death"] * 3, 3), (["end"], 1)])
def test_workers_that_never_come_up_are_an_error(words: list[str], hired: int) -> None:
    crew = crew_of(*words)
    with pytest.raises(WorkerLostError, match="died while it was starting: in a test"):
        list(Dispatcher(crew, 1).run([task("a")]))
    assert crew.hired == hired


def test_deaths_are_counted_for_each_task() -> None:
    # a lives; b and c cost two workers each, which is four deaths, and none too many.
    words = ["up", "a", "death", "up", "death", "up", "b", "death", "up", "death", "up", "c"]
    results = Dispatcher(crew_of(*words), 1).run([task("a"), task("b"), task("c")])
    assert [r.key for r in results] == ["a", "b", "c"]


def test_the_third_death_on_one_task_gives_it_up() -> None:
    crew = crew_of(*["up", "death"] * 3)
    message = (
        "^candidate 'k', images 2 to 9, was given up: its worker died 3 times, in a test; "
        "use fewer workers or more memory$"
    )
    with pytest.raises(WorkerLostError, match=message):
        list(Dispatcher(crew, 1).run([task("k", 2, 9)]))


def test_results_heard_with_an_error_come_before_it() -> None:
    crew = crew_of("up", "up", "error", "answer")
    results = Dispatcher(crew, 2).run([task("a"), task("b"), task("c")])
    next(results)
    with pytest.raises(InputError, match="told"):
        next(results)
    assert crew.owed == {}  # c was not begun


def test_a_worker_is_busy_again_before_the_caller_has_its_result() -> None:
    crew = crew_of("up", "answer", "answer")
    dispatcher = Dispatcher(crew, 1)
    results = dispatcher.run([task("a"), task("b")])
    next(results)
    assert [owed and owed.key for owed in crew.owed.values()] == ["b"]


def test_a_worker_without_a_scorer_is_let_go() -> None:
    crew = crew_of("error", "up", "answer")
    dispatcher = Dispatcher(crew, 1)
    with pytest.raises(InputError, match="told"):
        list(dispatcher.run([task("a")]))
    assert crew.alive == set()
    assert [r.key for r in dispatcher.run([task("a")])] == ["a"]


def test_a_later_run_hears_nothing_of_an_earlier_one() -> None:
    # Of the first run b and c are left, one to fail and one to die.
    crew = crew_of("up", "up", "answer", "silence", "error", "death", "answer")
    dispatcher = Dispatcher(crew, 2)
    first = dispatcher.run([task("a"), task("b"), task("c")])
    next(first)
    assert len(crew.owed) == 2
    assert [r.key for r in dispatcher.run([task("d")])] == ["d"]
    with pytest.raises(RuntimeError, match="a later run"):
        next(first)


def test_an_interrupt_leaves_no_worker() -> None:
    crew = crew_of("up", "up")
    crew.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        list(Dispatcher(crew, 2).run([task("a"), task("b")]))
    assert crew.hired == 2 and crew.alive == set()


def test_a_worker_that_dies_while_idle_costs_no_task_and_is_replaced() -> None:
    # Two come up and do a and b; one dies while the other does c; d and e need two again.
    crew = crew_of("up", "up", "a", "b", "c", "d", "silence", "silence", "up", "e")
    dispatcher = Dispatcher(crew, 2)
    assert len(list(dispatcher.run([task("a"), task("b")]))) == 2
    crew.doomed = {1, 2}
    assert [r.key for r in dispatcher.run([task("c")])] == ["c"]
    assert len(crew.alive) == 1
    assert [r.key for r in dispatcher.run([task("d"), task("e")])] == ["d", "e"]
    assert crew.hired == 3
