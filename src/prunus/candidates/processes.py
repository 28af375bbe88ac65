"""Tasks run in several processes of this machine."""

import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, final

from prunus.candidates.dispatch import Dispatcher, Lost, require_counts
from prunus.candidates.readable import main_is_importable, require_children
from prunus.candidates.surroundings import surroundings
from prunus.candidates.task import Result, Scoring, Task
from prunus.candidates.worker import SetupT, Worker
from prunus.errors import InputError, TemporaryFolderError

_WATCH_SECONDS = 1.0  # How often a worker looks whether its parent is still there.


@final
class ProcessExecutor:
    """Spawned processes, each with a scorer of its own, started when the first task comes.

    The setup travels once, through a file in the folder for temporary files, which only this user
    can read and which ``close`` deletes. A worker that dies is replaced and its task run again.
    Workers ignore Ctrl-C and end by themselves within two seconds of this process.

    Workers do not import the main script, so that it needs no ``if __name__ == "__main__":``,
    unless ``make`` or ``setup`` use something that is defined in it.

    Args:
        make: Makes the scorer from the setup, in each worker; a function of a module.
        setup: What ``make`` needs; anything that pickles.
        workers: Number of processes.
        threads: Of PyTorch, in each of them.

    Raises:
        InputError: A number is below one, ``make`` or ``setup`` cannot be pickled, or this is a
            process that may have no children.
    """

    def __init__(
        self, make: Callable[[SetupT], Scoring], setup: SetupT, workers: int, threads: int
    ) -> None:
        require_counts(workers=workers, threads=threads)
        require_children()
        try:
            packed = pickle.dumps((make, setup), protocol=pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise InputError(
                f"argument 'make' or 'setup' cannot be sent to a worker: {error}; "
                "use a function of a module and a setup that pickles"
            ) from error
        needs_main = b"__main__" in packed
        if needs_main and not main_is_importable():
            raise InputError(
                "argument 'make' or 'setup' uses what is defined in the main module, which was typed or "
                "piped in and workers cannot import: define it in a file, or use the serial executor"
            )
        path = _written(packed)
        crew = _Processes(path, threads, needs_main)
        self._release = weakref.finalize(self, _tidy, crew, path.parent)
        self._dispatcher = Dispatcher(crew, workers)

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in the order in which they end; see ``Dispatcher.run``.

        Raises:
            WorkerLostError: A task cost three workers, or no worker comes up.
            InputError: The workers cannot be started, or cannot read ``make`` or ``setup``.
        """
        if not self._release.alive:
            raise RuntimeError("this executor is closed")
        return self._dispatcher.run(tasks)

    def close(self) -> None:
        """Kill the workers, in mid-task too, and delete the setup. May be called twice."""
        self._dispatcher.dismiss()
        self._release()


@dataclass(frozen=True)
class _Line:
    """A process and this side's end of the pipe to it."""

    process: SpawnProcess
    pipe: "connection.Connection[Any, Any]"


@final
class _Processes:
    """A crew of processes, by number."""

    def __init__(self, path: Path, threads: int, needs_main: bool) -> None:
        self._path = path
        self._threads = threads
        self._needs_main = needs_main
        self._numbers = itertools.count(1)
        self._lines: dict[int, _Line] = {}

    def hire(self) -> int:
        number = next(self._numbers)
        context = multiprocessing.get_context("spawn")
        with surroundings(self._threads, self._needs_main):
            here, there = context.Pipe()
            process = context.Process(
                target=_work,
                args=(there, self._path, self._threads, os.getpid()),
                name=f"prunus-worker-{number}",
                daemon=True,
            )
            try:
                process.start()
            except RuntimeError as error:  # of spawn, when its child starts children at import
                here.close()
                raise InputError(
                    "a worker, importing the main script, was about to start workers of its own: "
                    "put the call in the main script under if __name__ == '__main__':"
                ) from error
            finally:
                there.close()
            self._lines[number] = _Line(process, here)
        return number

    def give(self, worker: int, task: Task) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # dead: `hear` finds it out
            self._lines[worker].pipe.send(task)

    def hear(self) -> list[tuple[int, bytes | Lost]]:
        watched: dict[Any, int] = {}
        for number, line in self._lines.items():
            watched[line.pipe] = watched[line.process.sentinel] = number
        # A worker that answered and then died is in the list twice: the answer is heard first.
        numbers = sorted({watched[ready] for ready in connection.wait(list(watched))})
        return [(number, self._word(number)) for number in numbers]

    def let_go(self, worker: int) -> None:
        line = self._lines.pop(worker)
        line.process.kill()
        _hang_up(line)

    def dismiss(self) -> None:
        lines = list(self._lines.values())
        for line in lines:
            line.process.kill()
        for line in lines:
            _hang_up(line)
        self._lines.clear()

    def _word(self, number: int) -> bytes | Lost:
        line = self._lines[number]
        try:
            if line.pipe.poll():
                return line.pipe.recv_bytes()
        except (EOFError, OSError):
            pass  # dead, perhaps in the middle of an answer
        del self._lines[number]
        line.process.join(_WATCH_SECONDS)
        line.process.kill()
        code = _hang_up(line)
        if code < 0:
            name = {s.value: s.name for s in signal.Signals}.get(-code, f"signal {-code}")
            cause = " (most likely out of memory)" if name == "SIGKILL" else ""
            return Lost(f"killed by {name}{cause}")
        remedy = "what it printed says why; with fewer workers each has more memory"
        if self._needs_main:
            remedy = "is there a call outside if __name__ == '__main__': in the main script?"
        return Lost(f"with exit code {code}; {remedy}", hopeless=True)


def _hang_up(line: _Line) -> int:
    """Wait for the end of a process and free what is left of it; its exit code."""
    line.process.join()
    code = line.process.exitcode
    line.process.close()
    line.pipe.close()
    return code or 0


def _written(packed: bytes) -> Path:
    """The setup in a folder of its own that only this user can read."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="prunus-"))
        try:
            (folder / "setup.pickle").write_bytes(packed)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise TemporaryFolderError(
            f"folder '{tempfile.gettempdir()}' does not take the setup of {len(packed)} bytes for "
            f"the workers ({error}): set TMPDIR to a folder with space"
        ) from error
    return folder / "setup.pickle"


def _tidy(crew: _Processes, folder: Path) -> None:
    crew.dismiss()
    shutil.rmtree(folder, ignore_errors=True)


def _work(pipe: "connection.Connection[Any, Any]", path: Path, threads: int, parent: int) -> None:
    """Life of a worker: make the scorer, answer, then a task and an answer at a time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch = threading.Thread(target=_end_with, args=(parent, path.parent), daemon=True)
    watch.start()
    worker = Worker()
    try:
        pipe.send_bytes(worker.prepare(_make_from_file, path, threads))
        while True:
            task = pipe.recv()
            pipe.send_bytes(worker.score(task))
    except (EOFError, OSError):
        watch.join()  # nobody is at the other end: the parent is gone, and the setup is to go


def _make_from_file(path: Path) -> Scoring:
    try:
        # Not a foreign file: the executor has just written it, in a folder of its own.
        make, setup = pickle.loads(path.read_bytes())
    except (AttributeError, ImportError) as error:
        raise InputError(
            f"argument 'make' or 'setup' cannot be read by a worker: {error}; "
            "define what they use in a module that can be imported"
        ) from error
    except OSError as error:
        raise TemporaryFolderError(
            f"folder '{path.parent}' was emptied before a worker had read it ({error.strerror}): set "
            "TMPDIR to a folder that nobody cleans up"
        ) from error
    scoring: Scoring = make(setup)
    return scoring


def _end_with(parent: int, folder: Path) -> None:
    """End this process, in mid-task too, when the parent is no more; it could not tidy up."""
    process = multiprocessing.parent_process()
    sentinels = [] if process is None else [process.sentinel]
    # A process forked from the parent keeps the sentinel open: a new parent is the surer sign.
    while not connection.wait(sentinels, _WATCH_SECONDS) and os.getppid() == parent:
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
