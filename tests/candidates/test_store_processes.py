"""What was stored stays through kills, forks and a full disk; one process has a store at a time."""

import importlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prunus.candidates.store import Store
from prunus.errors import InputError, StorageError
from tests.candidates.stored import IDENTITY, bits, fill, make, require_holds

ROOT = Path(__file__).parents[2]
unix = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is of POSIX systems")


def serve() -> None:
    """Forks a child for each line of input, a function of this module and a path.

    One process serves all tests, so that the imports are paid for once.
    """
    for line in sys.stdin:
        function, path = line.rstrip("\n").split(maxsplit=1)
        process = os.fork()
        if process == 0:
            say(os.getpid())
            globals()[function](Path(path))
            os._exit(0)
        say(f"ended {os.waitpid(process, 0)[1]}")


def say(word: object) -> None:
    os.write(1, f"{word}\n".encode())  # at once and as a whole, also when a kill comes next


class Children:
    """Processes that do something to a store, one after the other."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        assert server.stdin is not None and server.stdout is not None
        self.ask, self.answer = server.stdin, server.stdout

    def start(self, function: Callable[[Path], None], path: Path) -> int:
        """Its process id."""
        print(function.__name__, path, file=self.ask, flush=True)
        return int(self.word())

    def word(self) -> str:
        line = self.answer.readline()
        assert line, "the server ended"
        return line.strip()

    def end(self) -> tuple[list[str], int]:
        """The words that were left, and the status."""
        words = []
        while not (word := self.word()).startswith("ended"):
            words.append(word)
        return words, int(word.split()[1])


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    code = "from tests.candidates import test_store_processes; test_store_processes.serve()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    ) as server:
        yield Children(server)
        server.kill()


def write(path: Path) -> None:
    store = Store.open(path, IDENTITY)
    for index in itertools.count(len(store)):
        store.add(make(index))
        say(index)


@unix
def test_every_result_whose_add_returned_survives_kill_9(
    store_path: Path, children: Children
) -> None:
    moments = random.Random(3)
    stored = 0
    for _ in range(40):
        # In the opening, or some results later; an add takes about a millisecond.
        count, seconds = moments.choice([(0, 0.01), (1, 0.003), (3, 0.003), (6, 0.001)])
        process = children.start(write, store_path)
        told = [int(children.word()) for _ in range(count)]
        time.sleep(seconds * moments.random())
        os.kill(process, signal.SIGKILL)
        rest, status = children.end()
        assert status == signal.SIGKILL
        told += map(int, rest)
        assert told == list(range(stored, stored + len(told)))
        with Store.open(store_path, IDENTITY) as store:
            found = list(store.results())
            # One more: it was on the disk, but the writer died before it could say so.
            assert len(found) - stored - len(told) in {0, 1}
            assert len(store) == len(found)
        assert all(bits(result) == bits(make(index)) for index, result in enumerate(found))
        stored = len(found)


def hold(path: Path) -> None:
    try:
        with Store.open(path, IDENTITY) as store:
            store.add(make(0))
            say("held")
            sys.stdin.readline()
    except InputError as error:
        say(error)


def require_refused(path: Path) -> None:
    began = time.perf_counter()
    with pytest.raises(InputError) as raised:
        Store.open(path, IDENTITY)
    assert time.perf_counter() - began < 2
    assert str(raised.value) == in_use(path)


def in_use(path: Path) -> str:
    return f"'{path}' is in use by another process: wait for it, or name another folder"


@unix
@pytest.mark.parametrize("ending", ["killed", "closed"])
def test_a_second_process_is_refused_until_the_first_ends(
    store_path: Path, children: Children, ending: str
) -> None:
    process = children.start(hold, store_path)
    assert children.word() == "held"
    require_refused(store_path)
    require_refused(store_path)  # also after a first attempt
    if ending == "killed":
        os.kill(process, signal.SIGKILL)
    else:
        print("leave", file=children.ask, flush=True)
    assert children.end() == ([], signal.SIGKILL if ending == "killed" else 0)
    require_holds(store_path, [make(0)])


@unix
def test_a_second_store_in_one_process_is_refused_and_takes_no_lock_away(
    store_path: Path, children: Children
) -> None:
    with Store.open(store_path, IDENTITY) as store:
        store.add(make(0))
        require_refused(store_path)
        children.start(hold, store_path)
        assert children.end() == ([in_use(store_path)], 0)
        store.add(make(1))
    require_holds(store_path, [make(0), make(1)])


def fork_and_die(path: Path) -> None:
    """A forked worker closes its copy of the store; then this process is killed."""
    store = Store.open(path, IDENTITY)
    store.add(make(0))
    process = os.fork()
    if process == 0:
        with pytest.raises(ValueError, match="belongs to the process that opened it"):
            store.add(make(7))
        store.close()
        del store
        os._exit(0)
    say(os.waitpid(process, 0)[1])
    store.add(make(1))
    say("told")
    os.kill(os.getpid(), signal.SIGKILL)


@unix
def test_a_forked_worker_takes_nothing_along(store_path: Path, children: Children) -> None:
    children.start(fork_and_die, store_path)
    assert children.end() == (["0", "told"], signal.SIGKILL)
    require_holds(store_path, [make(0), make(1)])


def test_a_commit_waits_for_the_disk(store_path: Path) -> None:
    """With ``synchronous`` at 2 (FULL) SQLite syncs before it returns; the default is the build's."""
    with Store.open(store_path, IDENTITY) as store:
        asked = [
            store._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "journal_mode", "locking_mode")
        ]
        assert asked == [2, "persist", "exclusive"]


# Full disk


def test_a_full_disk_loses_nothing(store_path: Path) -> None:
    results = fill(store_path, 5)
    with Store.open(store_path, IDENTITY) as store:
        run = store._connection.execute
        (pages,) = run("PRAGMA page_count").fetchone()
        run(f"PRAGMA max_page_count = {pages + 12}")
        with pytest.raises(StorageError) as raised:  # noqa: PT012 - one of them meets the limit
            for index in range(5, 100):
                store.add(make(index))
                results.append(make(index))
        assert str(raised.value) == (
            f"'{store_path}': disk is full: free some space and resume; {len(results)} results are safe"
        )
        assert len(results) < 30
        assert [bits(r) for r in store.results()] == [bits(r) for r in results]
        run(f"PRAGMA max_page_count = {pages + 1000}")  # space was freed
        store.add(make(len(results)))
        results.append(make(len(results)))
    require_holds(store_path, results)


def outgrow(path: Path) -> None:
    resource = importlib.import_module("resource")  # of POSIX systems
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with Store.open(path, IDENTITY) as store:
        with pytest.raises(StorageError) as raised:  # noqa: PT012 - one of them meets the limit
            for index in range(100):
                store.add(make(index))
        say(len(store))
        say(raised.value)


@unix
def test_a_file_that_cannot_grow_loses_nothing(store_path: Path, children: Children) -> None:
    """The system refuses the write, wherever in the transaction it falls."""
    children.start(outgrow, store_path)
    (safe, message), status = children.end()
    assert status == 0
    assert 0 < int(safe) < 100
    assert message.endswith(f"then resume; {safe} results are safe")
    require_holds(store_path, [make(index) for index in range(int(safe))])


def test_a_file_that_was_moved_away_takes_no_more_results(store_path: Path) -> None:
    results = fill(store_path, 2)
    with Store.open(store_path, IDENTITY) as store:
        store_path.rename(store_path.with_suffix(".moved"))
        with pytest.raises(StorageError, match="was moved or deleted while it was in use: move it"):
            store.add(make(2))
    require_holds(store_path.with_suffix(".moved"), results)
