"""The far side of an executor: a scorer in another process, and how its errors come back."""

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, final

import torch

from prunus.candidates.task import Result, Scoring, Task

SetupT = TypeVar("SetupT")


class RemoteTraceback(Exception):  # noqa: N818 - a cause to be printed, never raised by itself
    """Where in the worker an exception was raised; the cause of that exception here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


@dataclass(frozen=True)
class Failure:
    """An exception of the worker on its way."""

    error: Exception
    trace: str

    def unwrap(self) -> Exception:
        """The exception, with its traceback over there as the cause."""
        self.error.__cause__ = RemoteTraceback(self.trace)
        return self.error


@final
class Worker:
    """The far side: holds the scorer and answers in pickled bytes, exceptions included."""

    def __init__(self) -> None:
        self._scoring: Scoring | None = None

    def prepare(self, make: Callable[[SetupT], Scoring], setup: SetupT, threads: int) -> bytes:
        """Make the scorer, once."""

        def call() -> None:
            torch.set_num_threads(threads)
            self._scoring = make(setup)

        return _answer(call)

    def score(self, task: Task) -> bytes:
        """Do a task."""

        def call() -> Result:
            if self._scoring is None:
                raise RuntimeError("a task came before the scorer was made")
            return self._scoring(task)

        return _answer(call)


def _answer(call: Callable[[], Result | None]) -> bytes:
    try:
        return pickle.dumps(call())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is raised on the other side
        trace = "".join(traceback.format_exception(error))
        try:
            packed = pickle.dumps(Failure(error, trace))
            pickle.loads(packed)  # an exception with arguments of its own may pack, yet not unpack
        except Exception:  # noqa: BLE001 - as above
            told = RuntimeError(f"{type(error).__name__}: {error}")
            packed = pickle.dumps(Failure(told, trace))
        return packed
