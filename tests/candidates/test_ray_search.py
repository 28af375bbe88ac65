"""A search on a real local Ray cluster: a worker is killed in the middle, and the plan is the same."""

import os
import signal
from dataclasses import replace
from typing import Any

import psutil
import pytest

from prunus.compute import Compute
from prunus.graph import trace
from prunus.method import Budget, Context, Decision
from prunus.prune.random_search import RandomSearch
from prunus.records import Source
from tests.recipe.subjects import few_digits, trained_cnn


class _Killer:
    """Progress that kills one Ray worker once so many images have been scored."""

    def __init__(self, after: int) -> None:
        self._after = after
        self._images = 0
        self._phase = ""
        self.killed: list[int] = []

    def start(self, phase: str, total: int) -> None:
        self._phase = phase

    def advance(self, n: int = 1, **values: float) -> None:
        if self._phase != "score candidates":
            return
        self._images += n
        if self._images >= self._after and not self.killed:
            worker = _scoring_workers()[0]
            os.kill(worker, signal.SIGKILL)
            self.killed.append(worker)

    def finish(self) -> None:
        self._phase = ""


def _scoring_workers() -> list[int]:
    """Ray actors of this process, by their title."""
    family = psutil.Process().children(recursive=True)
    titles = {p.pid: " ".join(p.cmdline()) for p in family if p.is_running()}
    return sorted(pid for pid, title in titles.items() if title.startswith("ray::Worker"))


def _decide(**given: Any) -> Decision:
    network, data = trained_cnn(), few_digits()
    example, _ = next(iter(data.train.batches(8)))
    context = Context(
        network=network,
        trace=trace(network, example),
        budget=Budget.parse("macs=0.5"),
        seed=3,
        train=data.train,
        search=data.search,
    )
    options = {"evaluations": 24, "images": 64, "recalibration_images": 64, "halving": False}
    return RandomSearch(**options).decide(replace(context, **given))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")
def test_search_on_ray_survives_a_killed_worker_and_gives_the_serial_plan() -> None:
    pytest.importorskip("ray")
    # Given, not picked by a trial: two trials may end differently, and a choice is an input of a run.
    serial = Compute(threads=1, batch_size=16, layout="contiguous", precision="float32")
    expected = _decide(compute=serial)
    killer = _Killer(after=8 * 64)
    cluster = serial.model_copy(update={"engine": "ray", "workers": 2})
    found = _decide(compute=cluster, progress=killer, source=Source(model="digits_cnn"))
    assert len(killer.killed) == 1
    assert {n: k.tolist() for n, k in found.choice.items()} == {
        n: k.tolist() for n, k in expected.choice.items()
    }
    scores = [point.values["kl"] for point in found.history]
    assert scores == pytest.approx([point.values["kl"] for point in expected.history], abs=1e-5)
