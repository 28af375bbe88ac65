"""What a new process finds around it: variables, signals, a main module."""

import os
import signal
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from types import ModuleType
from typing import TypeVar

ValueT = TypeVar("ValueT")


@contextmanager
def surroundings(threads: int, needs_main: bool) -> Iterator[None]:
    """What a process inherits at its start, on this side no longer than that.

    - OMP_NUM_THREADS: OpenMP reads it when torch is imported, before the worker's own code runs.
    - Ctrl-C blocked: it would hit the worker while it imports, before it can say that it ignores it.
    - A bare main module: spawn imports the main script in the worker, which runs it there if it
      has no guard, and fails for one that was typed in or piped in.
    """
    with ExitStack() as stack:
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            # Started by the first process otherwise, and it unblocks the signal.
            resource_tracker.ensure_running()
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, blocked)
        stack.enter_context(replaced(os.environ, "OMP_NUM_THREADS", str(threads)))
        if not needs_main:
            stack.enter_context(replaced(sys.modules, "__main__", ModuleType("__main__")))
        yield


@contextmanager
def replaced(mapping: MutableMapping[str, ValueT], key: str, value: ValueT) -> Iterator[None]:
    """Another value in a mapping, or a first one, for a while."""
    before = mapping.get(key)
    mapping[key] = value
    try:
        yield
    finally:
        if before is None:
            del mapping[key]
        else:
            mapping[key] = before
