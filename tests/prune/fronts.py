"""What a search for a front finds on handwritten digits, and how its tests look at it."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from prunus.compute import Compute
from prunus.data import DataSplits, load_data
from prunus.graph import Choice, Trace, trace
from prunus.method import Budget, Context, Decision, make_method
from prunus.plan import BoolArray
from prunus.records import Front, FrontPoint
from tests.helpers import images
from tests.recipe.subjects import trained_cnn

IMAGE = images(2, 1, 8, 8)
QUICK: dict[str, Any] = {
    "mode": "front",
    "population": 8,
    "generations": 2,
    "images": 64,
    "recalibration_images": 64,
}


@cache
def splits() -> DataSplits:
    return load_data("digits")


@cache
def traced() -> Trace:
    return trace(trained_cnn(), IMAGE)


def context(target: str = "macs=0.4", seed: int = 0) -> Context:
    data, compute = splits(), Compute(threads=1, precision="float32", layout="contiguous")
    network, budget = trained_cnn(), Budget.parse(target)
    return Context(network, traced(), budget, seed, data.train, data.search, compute=compute)


def search(target: str = "macs=0.4", seed: int = 0, **options: Any) -> Decision:
    return make_method("genetic", {**QUICK, **options}).decide(context(target, seed))


def front_of(decision: Decision) -> Front:
    assert decision.front is not None
    return decision.front


def choice_of(point: FrontPoint) -> dict[str, BoolArray]:
    return {name: keep.unpack() for name, keep in point.keep.items()}


def limit_of(budget: Budget) -> int:
    return budget.limit(budget.measure(traced(), {}))


def require_exact(budget: Budget, choice: Choice) -> None:
    """Within the limit, and one unit more in any group would be beyond it."""
    assert budget.measure(traced(), choice) <= limit_of(budget)
    for name, keep in choice.items():
        wider = keep.copy()
        wider[np.flatnonzero(~keep)[:1]] = True
        assert keep.all() or budget.measure(traced(), {**choice, name: wider}) > limit_of(budget)


def without_data(target: str) -> Context:
    """Nothing to score on: a pick that scored anything would fail."""
    return replace(context(target), train=None, search=None)


def reuse(path: Path, target: str, given: Context | None = None) -> Decision:
    return make_method("genetic", {"front": str(path)}).decide(given or without_data(target))
