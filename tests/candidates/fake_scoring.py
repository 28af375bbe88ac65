"""A scorer whose results are known, and which dies, fails or waits where the task's key says so."""

import os
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prunus.candidates.task import FloatArray, Result, Task
from prunus.errors import InputError
from prunus.plan import NetworkShape, Plan

_NOTHING = NetworkShape(tensors={})


@dataclass(frozen=True, eq=False)
class FakeSetup:
    """Notes what happens to it in a folder: ``EVENT.PID.*``, an empty file each."""

    folder: Path
    images: FloatArray
    failure: str = ""

    def note(self, event: str) -> None:
        (self.folder / f"{event}.{os.getpid()}.{uuid.uuid4().hex}").touch()

    def noted(self, event: str) -> list[int]:
        """Process ids, one for each time."""
        return [int(path.name.split(".")[1]) for path in self.folder.glob(f"{event}.*")]

    def wait_for(self, event: str, times: int = 1) -> list[int]:
        for _ in range(2400):
            if len(pids := self.noted(event)) >= times:
                return pids
            time.sleep(0.05)
        raise TimeoutError(f"'{event}' did not happen {times} times")

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.note("unpickled")


def task(key: str, start: int = 0, stop: int = 4) -> Task:
    return Task(key, Plan(source=_NOTHING, result=_NOTHING), start, stop)


def leave(_: FakeSetup) -> Callable[[Task], Result]:
    os._exit(3)


def make(setup: FakeSetup) -> Callable[[Task], Result]:
    setup.note("made")
    if setup.failure:
        raise InputError(setup.failure)

    def score(task: Task) -> Result:
        setup.note(f"scored {task.key}")
        fate, _, _ = task.key.partition(" ")
        if fate == "dies" or (fate == "dies-once" and len(setup.noted(f"scored {task.key}")) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "waits" and len(setup.noted(f"scored {task.key}")) == 1:
            time.sleep(60)
        if fate == "refuses":
            raise InputError("argument 'x' is 1: give 2")
        if fate == "fails":
            raise ZeroDivisionError("of the scorer")
        if fate == "odd":
            raise OddError(1, 2)
        kl = setup.images[task.start : task.stop] * len(task.key)
        threads = float(torch.get_num_threads())
        return Result(
            task.key, task.start, task.stop, kl, np.exp(-kl), kl > 1, b"\x00\xff", threads
        )

    return score


class OddError(Exception):
    """Pickles, but does not unpickle: it passes another number of arguments on than it takes."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
