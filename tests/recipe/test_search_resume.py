"""A search killed by the system goes on where it was, on another engine too; threads stay."""

import multiprocessing
import random
import sqlite3
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.candidates.workplace import Workplace
from prunus.compute import Compute
from prunus.errors import InputError
from prunus.method import Context, Decision
from prunus.prune import RandomSearch
from prunus.recipe import Compressed, Prune, Recalibrate, Repeat, Train, compare, compress
from prunus.recipe.folder import RunFile
from prunus.records import Comparison
from tests.recipe.search_life import SERIAL, STORE, live, live_apart, logging
from tests.recipe.subjects import Killed, Killer, few_digits, trained_cnn

# A server that has imported everything forks the lives: each is a process of its own.
LIVES = multiprocessing.get_context("forkserver")
LIVES.set_forkserver_preload(["prunus.recipe", "prunus.candidates.workplace"])
Scores = dict[tuple[str, int, int], bytes]
FEW = (Prune(method="random-search", target="macs=0.4", options={"evaluations": 6, "images": 64}),)
BRED = {"population": 4, "parents": 2, "generations": 1}
NEEDS_PYMOO = pytest.mark.skipif(find_spec("pymoo") is None, reason="pymoo is not installed")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "dense.pt"
    torch.save(trained_cnn().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def whole(weights: Path) -> Compressed:
    return live(weights, None)


def _facts(done: Compressed) -> tuple[object, ...]:
    record = done.record
    return record.plans, record.widths, [(p.step, p.values) for p in record.history]


def _stored(out: Path) -> Scores:
    """What the disk holds of a run that is dead."""
    connection = sqlite3.connect(out / STORE)
    try:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'results'")
        if tables.fetchone() is None:
            return {}
        rows = connection.execute("SELECT key, start, stop, kl FROM results").fetchall()
        return {(key, start, stop): kl for key, start, stop, kl in rows}
    finally:
        connection.close()


def _computed(log: Path) -> list[tuple[str, int, int]]:
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [(key, int(start), int(stop)) for key, start, stop in map(str.split, lines)]


def _killed_after(results: int, delay: float, weights: Path, out: Path, log: Path) -> None:
    """Let a process live until it has computed so many results, and a little longer."""
    process = LIVES.Process(target=live_apart, args=(weights, out, log, torch.get_num_threads()))
    process.start()
    until = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < until:
        if (out / STORE).exists() and len(_computed(log)) >= results:
            break
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    process.join()
    assert process.exitcode not in (0, 1)  # the end, or an error
    process.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_search_killed_again_and_again_ends_as_an_uninterrupted_one(
    weights: Path, whole: Compressed, tmp_path: Path
) -> None:
    out, draw, seen = tmp_path / "run", random.Random(0), 0
    before: Scores = {}
    for life in range(4):
        log = tmp_path / f"life-{life}.log"
        _killed_after(draw.randint(0, 8), draw.uniform(0, 0.05), weights, out, log)
        stored, computed = _stored(out), _computed(log)
        assert before.items() <= stored.items()  # nothing is forgotten
        assert not before.keys() & set(computed)  # nothing durable is computed again
        assert len(set(computed) - stored.keys()) <= 1  # results are stored as they come
        before, seen = stored, seen + len(computed)
    assert 0 < len(before) <= seen
    log = tmp_path / "last.log"
    done = live(weights, out, log)
    assert _facts(done) == _facts(whole)
    assert not before.keys() & set(_computed(log))
    assert len(_stored(out)) == len(before) + len(_computed(log))
    again = tmp_path / "again.log"
    assert live(weights, out, again).record == done.record
    assert not again.exists()


def test_another_engine_and_other_workers_may_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Context] = []
    honest = RandomSearch.decide

    def spy(self: RandomSearch, context: Context) -> Decision:
        given.append(context)
        return honest(self, context)

    monkeypatch.setattr(RandomSearch, "decide", spy)
    out = tmp_path / "run"
    begun = Compute(layout="contiguous", precision="float32")

    def go(compute: Compute, progress: Killer | None = None) -> Compressed:
        return compress(
            trained_cnn(),
            FEW,
            few_digits(),
            out=out,
            resume=True,
            compute=compute,
            progress=progress,
            latency=None,
        )

    with pytest.raises(Killed):
        go(begun, Killer("score candidates", 2 * 64))
    began = _stored(out)
    done = go(begun.model_copy(update={"engine": "processes", "workers": 2, "memory_mb": 0}))
    assert 0 < len(began) < len(_stored(out))
    alone = compress(trained_cnn(), FEW, few_digits(), compute=begun, latency=None)
    assert _facts(done) == _facts(alone)
    # as many threads for each candidate as the run began with, whatever the number of workers
    assert [c.compute.threads for c in given] == [torch.get_num_threads()] * 2 + [None]
    assert given[1].folder == out / STORE.parent


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("random-search", {"evaluations": 6}),
        ("genetic", BRED),
        pytest.param("genetic", {**BRED, "mode": "front"}, marks=NEEDS_PYMOO),
    ],
)
def test_a_search_that_was_killed_counts_the_seconds_of_all_its_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, options: dict[str, Any]
) -> None:
    def go(progress: Killer | None) -> Compressed:
        given: dict[str, Any] = {"compute": SERIAL, "latency": None, "progress": progress}
        return compress(trained_cnn(), steps, few_digits(), out=out, resume=True, **given)

    steps = (Prune(method=method, target="macs=0.5", options={**options, "images": 64}),)
    out, log = tmp_path / "run", tmp_path / "log"
    with monkeypatch.context() as patch:
        patch.setattr(Workplace, "run", logging(log, pause_s=1.0))
        with pytest.raises(Killed):
            go(Killer("score candidates", 3 * 64))
    assert len(_computed(log)) >= 3  # with a pause behind each but the last
    assert go(None).record.seconds["search"] >= 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 3}, "compute.threads was 1 and is 3; leave it out"),
        ({"precision": "bfloat16"}, "compute.precision was float32 and is bfloat16"),
        ({"batch_size": 32}, "compute.batch_size was 64 and is 32"),
    ],
)
def test_what_decides_scores_may_not_change(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    out = tmp_path / "run"
    killer = Killer("score candidates")
    with pytest.raises(Killed):
        compress(trained_cnn(), FEW, few_digits(), out=out, compute=SERIAL, progress=killer)
    other = Compute.model_validate(SERIAL.model_dump() | change)
    with pytest.raises(InputError, match="holds another run") as caught:
        compress(trained_cnn(), FEW, few_digits(), out=out, compute=other, resume=True)
    assert said in str(caught.value)


def test_without_a_search_compute_is_no_part_of_a_run(tmp_path: Path) -> None:
    out, steps = tmp_path / "run", (Prune(method="l1", target="macs=0.5"),)
    first = compress(trained_cnn(), steps, few_digits(), out=out, latency=None)
    other = Compute(threads=3, batch_size=8, engine="processes", workers=2)
    again = compress(
        trained_cnn(), steps, few_digits(), out=out, resume=True, compute=other, latency=None
    )
    assert again.record == first.record
    assert not (out / STORE.parent).exists()


def test_a_comparison_settles_the_threads_for_all_its_searches(tmp_path: Path) -> None:
    folder = tmp_path / "c"

    def run(methods: list[str], compute: Compute) -> Comparison:
        return compare(
            trained_cnn(),
            methods,
            few_digits(),
            "macs=0.4",
            options={"random-search": FEW[0].options},
            out=folder,
            resume=True,
            latency=None,
            compute=compute,
        )

    first = run(["random-search"], SERIAL)
    again = run(["random-search", "l1"], SERIAL.model_copy(update={"threads": None}))
    assert again.runs[0] == first.runs[0]
    assert RunFile.load(folder / "run.json").candidate_threads == 1
    cells = {
        name: RunFile.load(folder / "cells" / f"{name}-seed0" / "run.json").identity
        for name in ("random-search", "l1")
    }
    decisive = {"compute.precision", "compute.layout", "compute.batch_size"}
    assert {k for k in cells["random-search"] if k.startswith("compute")} == decisive
    assert not any(k.startswith("compute") for k in cells["l1"])
    with pytest.raises(InputError, match=r"threads was 1 and is 2"):
        run(["random-search"], SERIAL.model_copy(update={"threads": 2}))


def test_a_later_round_compares_with_the_network_before_all_cuts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Context] = []
    honest = RandomSearch.decide

    def spy(self: RandomSearch, context: Context) -> Decision:
        given.append(context)
        return honest(self, context)

    monkeypatch.setattr(RandomSearch, "decide", spy)
    dense = trained_cnn()
    inner = (FEW[0], Recalibrate(images=64), Train(epochs=1, lr=0.02, batch_size=64))
    compress(dense, [Repeat(times=2, steps=inner)], few_digits(), latency=None, compute=SERIAL)
    assert [len(c.plans) for c in given] == [0, 1]
    assert [c.source for c in given] == [None, None]  # a module alone cannot be built elsewhere
    for context in given:
        assert context.original is not None
        assert context.original is not dense
        state = context.original.state_dict()
        assert all(torch.equal(state[k], t) for k, t in dense.state_dict().items())
    wide, narrow = (c.network.get_parameter("conv2.weight").shape[0] for c in given)
    assert narrow < wide == 24
