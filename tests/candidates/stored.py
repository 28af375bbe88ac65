"""Results of any bits at all, and a store of them."""

from pathlib import Path

import numpy as np

from prunus.candidates.store import Store
from prunus.candidates.task import Result

IDENTITY = {"weights": "a" * 64, "images": "b" * 64, "seed": "0"}


def make(index: int) -> Result:
    """Any bits at all: NaNs with a payload and infinities too; up to a few pages of the file."""
    generator = np.random.default_rng(index)
    images = int(generator.integers(1, 400))
    return Result(
        key=f"{index:064x}",
        start=index,
        stop=index + images,
        kl=generator.integers(0, 2**32, images, np.uint32).view(np.float32),
        loss=generator.integers(0, 2**32, images, np.uint32).view(np.float32),
        correct=generator.integers(0, 2, images).astype(bool),
        statistics=generator.bytes(int(generator.integers(0, 20_000))),
        seconds=float(generator.random()),
    )


def bits(result: Result) -> tuple[object, ...]:
    """All of a result, in a form where equal means equal bits."""
    arrays = [(x.dtype.str, x.shape, x.tobytes()) for x in (result.kl, result.loss, result.correct)]
    seconds = float(result.seconds).hex()
    return result.key, result.start, result.stop, *arrays, result.statistics, seconds


def fill(path: Path, count: int) -> list[Result]:
    results = [make(index) for index in range(count)]
    with Store.open(path, IDENTITY) as store:
        for result in results:
            store.add(result)
    return results


def require_holds(path: Path, results: list[Result]) -> None:
    with Store.open(path, IDENTITY) as store:
        assert [bits(r) for r in store.results()] == [bits(r) for r in results]
        assert len(store) == len(results)
