"""Tasks run by Ray, on one machine or many."""

import importlib
import itertools
import logging
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, final

from prunus.candidates.dispatch import Dispatcher, Lost, require_counts
from prunus.candidates.surroundings import replaced
from prunus.candidates.task import Result, Scoring, Task
from prunus.candidates.worker import Failure, SetupT, Worker
from prunus.errors import InputError
from prunus.extras import require_extra

_CONNECT_SECONDS = 10.0
_PATIENCE = "RAY_gcs_server_port_wait_time_s"
_LOGGER = logging.getLogger("ray")
_QUIET = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}


@final
class RayExecutor:
    """Ray actors, each with a scorer of its own, started when the first task comes.

    The setup is put into Ray's object store once; its arrays are read-only in the workers, which
    share them. An actor that dies, alone or with its machine, is replaced and its task run again.

    Without an address Ray starts on this machine, with this process's ``sys.path``, and ends with
    ``close``. A cluster that this process has joined before is used and left as it is. The machines
    of a cluster need the Python, the Ray, the Prunus and the ``make`` of this one: all of them
    installed there, or a ``runtime_env`` given to ``ray.init`` beforehand.

    Args:
        make: Makes the scorer from the setup, in each actor; a function of a module.
        setup: What ``make`` needs; anything that pickles.
        workers: Number of actors.
        threads: Of PyTorch in each of them, and the processors that it reserves.
        address: Of a running cluster: "auto" for the one that this machine belongs to, or
            HOST:PORT. None: start Ray on this machine.

    Raises:
        InputError: A number is below one, no machine has that many processors, or no cluster
            answers at the address.
        MissingExtraError: Ray is not installed.
    """

    def __init__(
        self,
        make: Callable[[SetupT], Scoring],
        setup: SetupT,
        workers: int,
        threads: int,
        address: str | None = None,
    ) -> None:
        require_counts(workers=workers, threads=threads)
        self._ray = require_extra("ray", "ray")
        self._mine = not self._ray.is_initialized()
        self._level = _LOGGER.level
        if self._mine:
            _LOGGER.setLevel(logging.ERROR)
        try:
            if not self._mine:
                _require_same(self._ray, address)
            elif address is None:
                _start(self._ray, processors=workers * threads)
            else:
                _join(self._ray, address)
            _require_processors(self._ray, threads)
            crew = _Actors(self._ray, make, setup, threads)
        except BaseException:
            self._end_ray()
            raise
        self._dispatcher = Dispatcher(crew, workers)
        self._closed = False

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Results in the order in which they end; see ``Dispatcher.run``.

        Raises:
            WorkerLostError: A task cost three workers, or no worker comes up.
            InputError: The workers cannot read ``make``, ``setup`` or a task.
        """
        if self._closed:
            raise RuntimeError("this executor is closed")
        return self._dispatcher.run(tasks)

    def close(self) -> None:
        """Kill the actors, in mid-task too, and end Ray if it began here. May be called twice."""
        if not self._closed:
            self._closed = True
            self._dispatcher.dismiss()
            self._end_ray()

    def _end_ray(self) -> None:
        if self._mine:
            self._ray.shutdown()
            _LOGGER.setLevel(self._level)


@final
class _Actors:
    """A crew of actors, by number; each owes at most one answer."""

    def __init__(
        self, ray: ModuleType, make: Callable[[SetupT], Scoring], setup: SetupT, threads: int
    ) -> None:
        self._ray = ray
        self._threads = threads
        self._make = make
        try:
            self._setup = ray.put(setup)
        except (TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"argument 'setup' cannot be sent to a worker: {error}; use one that pickles"
            ) from error
        # Death is the dispatcher's business: Ray itself restarts and repeats nothing.
        options = ray.remote(num_cpus=threads, max_restarts=0, max_task_retries=0)
        self._kind = options(Worker)
        self._numbers = itertools.count(1)
        self._actors: dict[int, Any] = {}
        self._owed: dict[Any, int] = {}

    def hire(self) -> int:
        number = next(self._numbers)
        actor = self._actors[number] = self._kind.remote()
        self._owed[actor.prepare.remote(self._make, self._setup, self._threads)] = number
        return number

    def give(self, worker: int, task: Task) -> None:
        self._owed[self._actors[worker].score.remote(task)] = worker

    def hear(self) -> list[tuple[int, bytes | Lost]]:
        ready, _ = self._ray.wait(list(self._owed), num_returns=1)
        return [(self._owed[answer], self._word(answer)) for answer in ready]

    def let_go(self, worker: int) -> None:
        self._ray.kill(self._actors.pop(worker), no_restart=True)

    def dismiss(self) -> None:
        if self._ray.is_initialized():  # or somebody has ended it, and the actors with it
            for actor in self._actors.values():
                self._ray.kill(actor, no_restart=True)
        self._actors.clear()
        self._owed.clear()

    def _word(self, answer: Any) -> bytes | Lost:
        worker = self._owed.pop(answer)
        errors = self._ray.exceptions
        try:
            word: bytes = self._ray.get(answer)
            return word
        except errors.RayTaskError as error:
            # The worker packs all errors of the scorer: this one came before its own code did.
            told = InputError(
                f"a Ray worker cannot read 'make', 'setup' or the task: {error.cause!r}; install "
                "the same Prunus, and the module of 'make', on all machines of the cluster"
            )
            return pickle.dumps(Failure(told, error.traceback_str))
        except errors.RayError as error:  # the actor, its machine or the way there
            self.let_go(worker)
            return Lost(f"says Ray: {_line(error)}")


def _start(ray: ModuleType, processors: int) -> None:
    with ExitStack() as stack:
        # The workers' environment is that of the cluster's start.
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        stack.enter_context(replaced(os.environ, "PYTHONPATH", path))
        stack.enter_context(replaced(os.environ, "RAY_USAGE_STATS_ENABLED", "0"))
        stack.enter_context(_handler_kept())
        # "local", since without an address Ray would join whatever runs here already.
        try:
            ray.init(address="local", num_cpus=processors, include_dashboard=False, **_QUIET)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise InputError(
                f"Ray cannot start on this machine ({_line(error)}): mend that, or use processes"
            ) from error


@contextmanager
def _handler_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself and ends the process without tidying up: give it back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # Handlers are the main thread's; one that was not set in Python cannot be set again.
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


def _join(ray: ModuleType, address: str) -> None:
    require_cluster(address)
    # One attempt, of a minute, and not twenty, at a cluster that has crashed and is still named.
    patience = os.environ.get(_PATIENCE, "1")
    try:
        with replaced(os.environ, _PATIENCE, patience), _handler_kept():
            ray.init(address=address, **_QUIET)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(
            f"argument 'address' is '{address}', where no Ray cluster can be joined "
            f"({_line(error)}): run `ray start --head` first, or leave it out to start Ray on this "
            "machine"
        ) from error


def require_cluster(address: str) -> None:
    """Refuse an address where nothing answers; Ray itself asks for minutes, with much noise.

    Args:
        address: ``HOST:PORT``, or ``auto``: the cluster that this machine belongs to.

    Raises:
        InputError: It is neither, or nothing answers there.
    """
    if address == "auto":
        _require_some_cluster()
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"argument 'address' is '{address}': give 'auto' or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"argument 'address' is '{address}', where nothing answers ({error}): run "
            "`ray start --head` there first, or leave it out to start Ray on this machine"
        ) from error


def _require_some_cluster() -> None:
    """Look a cluster up as ``ray.init`` will: that takes no time, and joining one takes seconds."""
    if require_extra("ray", "ray").is_initialized():
        return
    try:
        services = importlib.import_module("ray._private.services")
        services.canonicalize_bootstrap_address_or_die("auto")
    except ConnectionError as error:
        raise InputError(
            f"argument 'address' is 'auto', but this machine belongs to no Ray cluster ({_line(error)}): "
            "run `ray start --head` first, or leave it out to start Ray on this machine"
        ) from error
    except (ImportError, AttributeError, ValueError):
        return  # a Ray without this helper, or ray:// in RAY_ADDRESS: `ray.init` will tell


def _require_same(ray: ModuleType, address: str | None) -> None:
    joined = ray.get_runtime_context().gcs_address
    if address not in {None, "auto", joined}:
        raise InputError(
            f"argument 'address' is '{address}', but this process has joined the Ray cluster at "
            f"'{joined}': leave the argument out, or call ray.shutdown() before"
        )


def _require_processors(ray: ModuleType, threads: int) -> None:
    """An actor that fits nowhere would be waited for without end."""
    most = max(
        (node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0
    )
    if threads > most:
        raise InputError(
            f"argument 'threads' is {threads}, but the largest machine of the Ray cluster has "
            f"{most:.0f} processors: ask for fewer, or add a larger machine first"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
