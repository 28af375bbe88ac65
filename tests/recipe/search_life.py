"""A small search that tells what it computes, in this process or in one that is to be killed."""

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
        options={"evaluations": 40, "images": 288, "jitter": 1.0},
    ),
    Recalibrate(images=64),
)
SERIAL = Compute(threads=1, precision="float32", layout="contiguous")


def live(weights: Path, out: Path | None, log: Path | None = None) -> Compressed:
    """Run, or go on; the log gets a line for every result that is computed, before it is stored."""
    source = Source(model="digits_cnn", weights=str(weights))
    with pytest.MonkeyPatch.context() as patch:
        if log is not None:
            patch.setattr(Workplace, "run", _logging(log))
        return compress(source, STEPS, "digits", out=out, resume=True, latency=None, compute=SERIAL)


def _logging(log: Path) -> object:
    honest = Workplace.run

    def run(self: Workplace, tasks: Sequence[Task]) -> Iterator[Result]:
        for result in honest(self, tasks):
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{result.key} {result.start} {result.stop}\n")
            yield result

    return run


def live_apart(weights: Path, out: Path, log: Path, threads: int) -> None:
    """What happens in a process that is killed; computed as the process that started it does."""
    torch.set_num_threads(threads)
    live(weights, out, log)
