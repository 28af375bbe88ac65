"""What travels between the engine and whoever scores for it: tasks out, results back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prunus.plan import BoolArray, Plan

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Task:
    """One candidate on a range of the search images: the unit of work, of storing and of losing.

    Attributes:
        key: Hash of the network that the plan makes (hex); of one candidate in all its tasks.
        plan: What stays of the network that the scorer holds.
        start: First image.
        stop: One after the last image.
        statistics: Batch-norm statistics measured in an earlier task of this candidate; None: measure
            them first.
        calibration: Batches of images for the statistics; None: all there are.
        share: Boundaries (see ``prefix``) whose activations a later task can use.
        measured: Batches of images that ``statistics`` are of, where more are to be measured; None:
            they are complete.
    """

    key: str
    plan: Plan
    start: int
    stop: int
    statistics: bytes | None = None
    calibration: int | None = None
    share: tuple[int, ...] = ()
    measured: int | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """What a task found out, image by image: ``[stop - start]`` each.

    Attributes:
        key: Of the task.
        start: Of the task.
        stop: Of the task.
        kl: KL(dense || candidate) in nats, at temperature 1.
        loss: Cross-entropy with the label, in nats.
        correct: Whether the largest logit is the label's.
        statistics: Batch-norm statistics of the candidate; empty for a network without batch norm.
        seconds: Of the task, on the worker.
    """

    key: str
    start: int
    stop: int
    kl: FloatArray
    loss: FloatArray
    correct: BoolArray
    statistics: bytes
    seconds: float


Scoring = Callable[[Task], Result]


class Executor(Protocol):
    """Runs tasks somewhere. What a task gives depends on the task alone, not on where it runs."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Results of all tasks, in the order in which they end.

        A task whose worker dies is run again on another.

        Raises:
            PrunusError: A task cannot be done; the message says why.
        """

    def close(self) -> None:
        """Let the workers go. May be called twice."""
