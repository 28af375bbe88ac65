"""A subject to score, and results that are compared."""

from dataclasses import replace
from functools import cache

import numpy as np
from torch import nn

from prunus.candidates.execution import ScoringExecution as Execution
from prunus.candidates.scorer import Images, Scorer, Tricks
from prunus.candidates.task import Result, Task
from prunus.data import SearchSplit, TrainSplit
from prunus.graph import Trace, trace
from prunus.plan import Plan
from prunus.zoo import build
from tests.candidates.subjects import (
    gather,
    search_split,
    train_split,
)
from tests.helpers import enliven_, images

BARE = Tricks(fold=False, memory_bytes=0)
LAST = Execution("float32", "channels_last")


@cache
def subject(name: str = "digits_cnn") -> tuple[nn.Module, Trace, SearchSplit, TrainSplit, Images]:
    shape = (1, 8, 8) if name == "digits_cnn" else (3, 8, 8)
    arguments = {} if name == "digits_cnn" else {"width": 0.3}
    network = enliven_(build(name, **arguments))
    search, train = (
        search_split(images(150, *shape, seed=1), 10),
        train_split(images(140, *shape, seed=2), 10),
    )
    found = trace(network, images(2, *shape), verify=False)
    return network, found, search, train, gather(network, search, train)


def score(
    scorer: Scorer,
    plan: Plan,
    *ends: int,
    share: tuple[int, ...] = (),
    anew: bool = False,
    calibration: int | None = None,
) -> Result:
    """One result of a candidate scored in parts."""
    results: list[Result] = []
    for start, stop in zip((0, *ends), ends, strict=False):
        statistics = results[-1].statistics if results and not anew else None
        results.append(scorer(Task("k", plan, start, stop, statistics, calibration, share)))
        assert (results[-1].start, results[-1].stop) == (start, stop)
    assert len({result.statistics for result in results}) == 1
    return replace(
        results[0],
        stop=ends[-1],
        kl=np.concatenate([r.kl for r in results]),
        loss=np.concatenate([r.loss for r in results]),
        correct=np.concatenate([r.correct for r in results]),
    )


def same(a: Result, b: Result) -> bool:
    return (
        a.statistics == b.statistics
        and a.kl.tobytes() == b.kl.tobytes()
        and a.loss.tobytes() == b.loss.tobytes()
        and a.correct.tobytes() == b.correct.tobytes()
    )


def require_close(a: Result, b: Result, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(a.kl, b.kl, rtol=tolerance, atol=tolerance / 10)
    np.testing.assert_allclose(a.loss, b.loss, rtol=tolerance, atol=tolerance / 10)
    assert (a.correct == b.correct).mean() > 0.98
