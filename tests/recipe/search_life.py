"""A small search that tells what it computes, in this process or in one that is to be killed."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from prunus.candidates.task import Result, Task
from prunus.candidates.workplace import Workplace
from prunus.compute import Compute
from prunus.recipe import Compressed, Prune, Recalibrate, Step, compress
from prunus.records import Source

STORE = Path("steps", "01-prune.search", "candidates.sqlite")
STEPS: tuple[Step, ...] = (
    Prune(
        method="random-search",
        target="macs=0.4",
        options={"evaluations": 60, "images": 288, "jitter": 1.0},
    ),
    Recalibrate(images=64),
)
SERIAL = Compute(threads=1, precision="float32", layout="contiguous")


PAUSE_S = 0.01


def live(
    weights: Path, out: Path | None, log: Path | None = None, pause_s: float = 0.0
) -> Compressed:
    """Run, or go on; the log gets a line for every result that is computed, before it is stored.

    A pause after each result keeps a fast machine from ending before it is killed.
    """
    source = Source(model="digits_cnn", weights=str(weights))
    with pytest.MonkeyPatch.context() as patch:
        if log is not None:
            patch.setattr(Workplace, "run", logging(log, pause_s))
        return compress(
            source, STEPS, "digits", out=out, resume=out is not None, latency=None, compute=SERIAL
        )


def logging(log: Path, pause_s: float) -> object:
    """A workplace's ``run`` that writes the log, and pauses."""
    honest = Workplace.run

    def run(self: Workplace, tasks: Sequence[Task]) -> Iterator[Result]:
        for result in honest(self, tasks):
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{result.key} {result.start} {result.stop}\n")
            yield result
            time.sleep(pause_s)

    return run


def live_apart(weights: Path, out: Path, log: Path, threads: int) -> None:
    """What happens in a process that is killed; computed as the process that started it does."""
    torch.set_num_threads(threads)
    live(weights, out, log, PAUSE_S)
