"""Candidates in, scores out: what is computed, how often, and what survives."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import log_softmax

from prunus.candidates import Candidate, Engine, Scored, Scoring, ranked
from prunus.candidates.execution import ScoringExecution as Execution
from prunus.candidates.scorer import Images, Scorer
from prunus.candidates.serial import SerialExecutor
from prunus.candidates.store import STORE_FILE, Store
from prunus.candidates.task import Result, Task
from prunus.candidates.workplace import Workplace, gather_images, spread_order
from prunus.compute import Compute
from prunus.data import DataSplits
from prunus.errors import InputError
from prunus.graph import Trace, cut, trace
from prunus.graph.inputs import call
from prunus.method import Budget, Context
from prunus.plan import KeepChannels
from prunus.train import evaluate, recalibrate_batch_norm_
from tests.candidates.subjects import bits_of, unchanged
from tests.helpers import all_but, chain, enliven_, images, random_choice
from tests.recipe.subjects import Killed, Killer, few_digits, trained_cnn

PLAIN = Compute(precision="float32", layout="contiguous", batch_size=16)
SMALL = Scoring(
    images=64,
    calibration_images=128,
    first_images=16,
    quick_images=32,
    quick_calibration_images=64,
)


# Scripted scores: a network per choice of units, a number per image


@cache
def small_trace() -> tuple[nn.Module, Trace]:
    network = enliven_(chain())
    return network, trace(network, images(2, 3, 8, 8))


Array = npt.NDArray[np.floating]
Script = Callable[[Task], Array]


def removed(task: Task) -> int:
    """How many units a plan removes."""
    edits = [e for e in task.plan.edits if isinstance(e, KeepChannels)]
    return sum(int((~e.keep.unpack()).sum()) for e in edits)


def more_is_worse(task: Task) -> Array:
    """0.1 nats for each unit removed, and noise that all candidates share, and some of their own."""
    shared = np.random.default_rng(0).exponential(0.1, 1000)
    own = np.random.default_rng(int(task.key[:8], 16)).normal(0, 0.01, 1000)
    return (0.1 * removed(task) + shared + own)[task.start : task.stop]


@dataclass
class Scripted:
    """Scores from a script; notes every task."""

    script: Script = more_is_worse
    tasks: list[Task] = field(default_factory=list)

    def __call__(self, task: Task) -> Result:
        self.tasks.append(task)
        values = self.script(task).astype(np.float32)
        right = np.random.default_rng(removed(task)).random(1000) > 0.1 * removed(task)
        return Result(
            key=task.key,
            start=task.start,
            stop=task.stop,
            kl=values,
            loss=2 * values,
            correct=right[task.start : task.stop],
            statistics=b"s" * 36,
            seconds=0.5,
        )

    def images_of(self, key: str) -> list[tuple[int, int]]:
        return [(t.start, t.stop) for t in self.tasks if t.key == key]


class Counted:
    """Progress that adds up."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.done: list[int] = []
        self.values: list[dict[str, float]] = []
        self.finished = 0

    def start(self, phase: str, total: int) -> None:
        self.totals.append(total)
        self.done.append(0)

    def advance(self, n: int = 1, **values: float) -> None:
        assert n >= 0
        self.done[-1] += n
        self.values.append(values)

    def finish(self) -> None:
        self.finished += 1


def scripted(
    scorer: Scripted,
    scoring: Scoring = SMALL,
    count: int = 64,
    store: Store | None = None,
    progress: Any = None,
) -> Engine:
    network, found = small_trace()
    held = Images(
        search=torch.zeros(count, 3, 8, 8),
        labels=torch.zeros(count, dtype=torch.int64),
        reference=torch.zeros(count, 2),
        difficulty=torch.arange(count, dtype=torch.float64),
        calibration=tuple(torch.zeros(64, 3, 8, 8) for _ in range(2)),
    )
    place = Workplace(
        network, found, held, scoring, PLAIN, Execution(), SerialExecutor(scorer), None
    )
    return Engine(place, store, progress)


def candidate(*gone: int, later: Sequence[int] = ()) -> Candidate:
    choice = {"0": all_but(4, *gone)} if gone else {}
    return Candidate(choice | ({"3": all_but(5, *later)} if later else {}))


def several() -> list[Candidate]:
    """Sixteen, of which the first is best and the last worst."""
    first = [(), (0,), (1,), (0, 1)]
    return [candidate(*a, later=b) for b in ((), (0,), (0, 1), (0, 1, 2)) for a in first]


def summary(scored: Sequence[Scored]) -> list[tuple[Any, ...]]:
    return [(s.key, s.fitness, s.kl, s.loss, s.top1, s.images, s.complete) for s in scored]


def test_every_candidate_is_seen_on_all_images_where_no_best_are_wanted() -> None:
    scorer = Scripted()
    engine = scripted(scorer)
    scored = engine.score(several())
    assert [(t.start, t.stop, t.calibration) for t in scorer.tasks] == 16 * [(0, 64, None)]
    for mine, given_one in zip(scored, several(), strict=True):
        assert mine.complete and mine.images == 64
        assert {k: v.tolist() for k, v in mine.candidate.choice.items()} == {
            k: v.tolist() for k, v in given_one.choice.items()
        }
        values = more_is_worse(next(t for t in scorer.tasks if t.key == mine.key)).astype(
            np.float32
        )
        assert mine.kl == pytest.approx(values.mean(dtype=np.float64))
        assert mine.loss == pytest.approx(2 * values.mean(dtype=np.float64))
        assert mine.fitness == round(mine.kl, 4)
    assert engine.evaluations == 16


def test_same_network_is_scored_once() -> None:
    scorer = Scripted()
    engine = scripted(scorer)
    everything = {"0": np.ones(4, dtype=bool), "3": np.ones(5, dtype=bool)}
    scored = engine.score([candidate(), candidate(1), Candidate(everything), candidate(1)])
    assert len(scorer.tasks) == 2
    assert summary(scored[:2]) == summary(scored[2:])
    assert engine.evaluations == 2
    again = engine.score([candidate(1), candidate(2)])
    assert len(scorer.tasks) == 3
    assert summary(again[:1]) == summary(scored[1:2])


def test_candidate_scored_before_costs_nothing_whoever_asks() -> None:
    scorer = Scripted()
    engine = scripted(scorer)
    engine.score(several())
    count = len(scorer.tasks)
    for top in (1, 3, None):
        engine.score(several(), top)
        assert len(scorer.tasks) == count, top


def test_nothing_to_score() -> None:
    progress = Counted()
    engine = scripted(Scripted(), progress=progress)
    assert engine.score([]) == [] and engine.score([], top=2) == []
    assert engine.evaluations == 0
    assert progress.totals == progress.done == [0, 0] and progress.finished == 2


@pytest.mark.parametrize("top", [1, 2, 4, 16, 99])
def test_halving_ends_with_the_best_of_all(top: int) -> None:
    full, scorer = Scripted(), Scripted()
    best = ranked(scripted(full).score(several()))[:top]
    with_halving = scripted(scorer).score(several(), top)
    assert summary(ranked(with_halving)[:top]) == summary(best)
    assert all(s.complete for s in ranked(with_halving)[:top])
    if top < 4:
        assert sum(t.stop - t.start for t in scorer.tasks) < 0.6 * 16 * 64
        assert not ranked(with_halving)[-1].complete


def test_looks_by_hand() -> None:
    """Quick ones of 16 and 32 images behind 64 for the statistics; then all, behind 128, begun anew."""
    scorer = Scripted()
    engine = scripted(scorer)
    scored = engine.score(several(), top=1)
    best, worst = scored[0], scored[-1]
    quick = best.key + "~"
    assert scorer.images_of(quick) == [(0, 16), (16, 32)]
    assert scorer.images_of(best.key) == [(0, 64)]
    assert scorer.images_of(worst.key) == []
    assert worst.images in (16, 32) and not worst.complete
    assert {t.calibration for t in scorer.tasks if t.key.endswith("~")} == {1}
    assert {t.calibration for t in scorer.tasks if not t.key.endswith("~")} == {None}
    statistics = [t.statistics for t in scorer.tasks if t.key == quick]
    assert statistics == [None, b"s" * 36]


def test_full_looks_go_on_from_the_statistics_of_quick_ones() -> None:
    scorer = Scripted()
    scripted(scorer).score(several(), top=2)
    quick = {t.key.rstrip("~") for t in scorer.tasks if t.calibration == 1}
    first = [t for t in scorer.tasks if t.calibration is None and t.start == 0]
    assert first
    assert {t.key for t in first} < quick
    assert {(t.statistics, t.measured) for t in first} == {(b"s" * 36, 1)}
    later = [t for t in scorer.tasks if t.start > 0]
    assert {t.measured for t in later} == {None}  # these have all that their look measures
    alone = Scripted()
    scripted(alone).score(several())  # no halving, no quick looks
    assert {(t.statistics, t.measured) for t in alone.tasks} == {(None, None)}


def test_candidate_dropped_is_never_ranked_before_one_that_was_not() -> None:
    """Behind few calibration images all look better here, and differ late: on all images but few."""

    def script(task: Task) -> Array:
        at = np.arange(task.start, task.stop)
        base = 0.5 if task.key.endswith("~") else 3.0
        return base + 0.1 * removed(task) * (at >= 16)

    for quick_images in (16, 32, 64, 256):
        scoring = SMALL.model_copy(update={"quick_images": quick_images})
        for count in (64, 60, 32):
            scored = scripted(Scripted(script), scoring, count).score(several(), top=2)
            order = ranked(scored)
            assert [s.complete for s in order] == sorted((s.complete for s in scored), reverse=True)
            assert order[0].key == scored[0].key, (quick_images, count)


@pytest.mark.parametrize("quick_images", [32, 64, 256])
def test_quick_looks_decide_nothing_by_a_hair(quick_images: int) -> None:
    """The better of two is worse by noise alone behind few calibration images: it must stay."""

    def script(task: Task) -> Array:
        noise = 0.5 * (-1.0) ** np.arange(64) * (-1) ** removed(task)  # none in any even number
        wrong = 0.01 * removed(task) - 0.5 * removed(task) * (not task.key.endswith("~"))
        values: Array = noise + wrong
        return values[task.start : task.stop]

    scoring = SMALL.model_copy(update={"quick_images": quick_images})
    scored = scripted(Scripted(script), scoring).score([candidate(), candidate(1)], top=1)
    full = scripted(Scripted(script), scoring).score([candidate(), candidate(1)])
    assert ranked(scored)[0].key == ranked(full)[0].key


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=8),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([None, 1, 2]),
)
def test_progress_adds_up(
    which: list[tuple[int, int]], top: int | None, before: int | None
) -> None:
    progress = Counted()
    engine = scripted(Scripted(), progress=progress)
    some = [candidate(*range(a), later=tuple(range(b))) for a, b in which]
    engine.score(some[:4], before)
    engine.score(some, top)
    assert progress.totals == progress.done
    assert progress.finished == 2
    bests = [v["best"] for v in progress.values if "best" in v]
    assert all(math.isfinite(best) for best in bests)


@pytest.mark.parametrize("quantity", ["kl", "loss", "accuracy"])
def test_fitness_is_what_was_asked_for(quantity: Any) -> None:
    engine = scripted(Scripted(), SMALL.model_copy(update={"fitness": quantity}))
    for found in engine.score(several()):
        expected = {"kl": found.kl, "loss": found.loss, "accuracy": 1 - found.top1}[quantity]
        assert found.fitness == pytest.approx(expected, abs=5.01e-5)


def test_broken_candidates_are_last_and_all_numbers_finite() -> None:
    def script(task: Task) -> Array:
        values = more_is_worse(task)
        if removed(task) == 1:
            values[:] = np.nan
        if removed(task) == 2:
            values[3 % len(values)] = np.inf
        return values

    for top in (None, 1):
        scored = scripted(Scripted(script)).score(several(), top)
        assert all(math.isfinite(v) for s in scored for v in (s.fitness, s.kl, s.loss))
        assert ranked(scored)[0].key == scored[0].key
        if top is None:
            assert ranked(scored)[-1].kl == 1e4


# What survives


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / STORE_FILE


def test_second_engine_computes_nothing_again(store_path: Path) -> None:
    for top in (3, None):
        first, second = Scripted(), Scripted()
        with Store.open(store_path, {"a": "b"}) as store:
            expected = scripted(first, store=store).score(several(), top)
        with Store.open(store_path, {"a": "b"}) as store:
            progress = Counted()
            again = scripted(second, store=store, progress=progress)
            assert summary(again.score(several(), top)) == summary(expected)
            assert first.tasks and second.tasks == []
        assert progress.totals == progress.done


@pytest.mark.parametrize("top", [2, None])
def test_interrupt_at_any_task_loses_nothing(top: int | None, tmp_path: Path) -> None:
    whole = Scripted()
    expected = summary(scripted(whole).score(several(), top))
    for stop in range(1, len(whole.tasks) + 1, 3):
        folder = tmp_path / str(stop)
        folder.mkdir()
        runs: list[Scripted] = []

        def interrupted(task: Task, stop: int = stop, runs: list[Scripted] = runs) -> Array:
            if len(runs[-1].tasks) == stop:
                raise KeyboardInterrupt
            return more_is_worse(task)

        runs.append(Scripted(interrupted))
        with Store.open(folder / STORE_FILE, {}) as store, pytest.raises(KeyboardInterrupt):
            scripted(runs[0], store=store).score(several(), top)
        with Store.open(folder / STORE_FILE, {}) as store:
            rest = Scripted()
            assert summary(scripted(rest, store=store).score(several(), top)) == expected
        assert len(runs[0].tasks) - 1 + len(rest.tasks) == len(whole.tasks)


def test_engine_goes_on_after_an_interrupt() -> None:
    """What came before the interrupt counts, without a store too; threads are given back."""
    count = 0

    def interrupted(task: Task) -> Array:
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return more_is_worse(task)

    threads = torch.get_num_threads()
    engine = scripted(Scripted(interrupted))
    with pytest.raises(KeyboardInterrupt):
        engine.score(several(), top=2)
    assert torch.get_num_threads() == threads
    assert summary(engine.score(several(), top=2)) == summary(
        scripted(Scripted()).score(several(), top=2)
    )


def test_kill_between_storing_and_telling(store_path: Path) -> None:
    with Store.open(store_path, {}) as store, pytest.raises(Killed):
        scripted(Scripted(), store=store, progress=Killer("score candidates", 40)).score(several())
    with Store.open(store_path, {}) as store:
        stored = len(store)
        rest = Scripted()
        again = scripted(rest, store=store).score(several())
        assert stored > 0 and len(rest.tasks) == 16 - stored
    assert summary(again) == summary(scripted(Scripted()).score(several()))


def test_seconds_before_a_kill_are_kept(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 s a task: notes after 8 s and 16 s, a kill after 20 s; then 4 s for each that is left."""
    expected = summary(scripted(Scripted()).score(several()))
    clock = [0.0]
    fake = SimpleNamespace(perf_counter=lambda: clock[0])
    monkeypatch.setattr("prunus.candidates.engine.time", fake)

    def slow(task: Task) -> Array:
        clock[0] += 4
        if clock[0] == 20:
            raise Killed
        return more_is_worse(task)

    noted: list[float] = []
    honest = Store.keep_seconds

    def spy(self: Store, seconds: float) -> None:
        noted.append(seconds)
        honest(self, seconds)

    monkeypatch.setattr(Store, "keep_seconds", spy)
    store = Store.open(store_path, {})
    first = scripted(Scripted(slow), store=store)
    assert first.earlier_seconds == 0
    with pytest.raises(Killed):
        first.score(several())
    store.close()  # as the system does it: the engine has no last word
    assert noted == [8, 16]
    with scripted(Scripted(slow), store=Store.open(store_path, {})) as second:
        assert second.earlier_seconds == 16
        scored = second.score(several())
    with Store.open(store_path, {}) as store:
        assert store.seconds == 16 + 4 * (16 - 4)
    assert summary(scored) == expected


def test_what_is_stored_is_not_forgotten(store_path: Path) -> None:
    scorer = Scripted()
    with Store.open(store_path, {}) as store:
        engine = scripted(scorer, store=store)
        expected = summary(engine.score(several()))
        engine.forget()
        assert summary(engine.score(several())) == expected
    assert len(scorer.tasks) == 16


def test_forget_without_a_store_begins_anew() -> None:
    scorer = Scripted()
    engine = scripted(scorer)
    engine.score(several())
    engine.forget()
    assert engine.evaluations == 0
    engine.score(several())
    assert len(scorer.tasks) == 32


# The real thing


@cache
def digits() -> DataSplits:
    return few_digits()


def context(network: nn.Module | None = None, **given: Any) -> Context:
    network = trained_cnn() if network is None else network
    found = trace(network, images(2, 1, 8, 8), verify=False)
    defaults: dict[str, Any] = {
        "budget": Budget.parse("macs=0.5"),
        "seed": 0,
        "train": digits().train,
        "search": digits().search,
        "compute": PLAIN,
    }
    return Context(network=network, trace=found, **(defaults | given))


def real_candidates(found: Trace, count: int = 6) -> list[Candidate]:
    some = [Candidate(random_choice(found, seed, 0.8)) for seed in range(count - 1)]
    shared = {"conv2": some[0].choice["conv2"], "conv4": some[1].choice["conv4"]}
    return [*some, Candidate(shared)]


@pytest.mark.parametrize("memory_mb", [0, 256])
def test_scores_are_those_of_cut_recalibrated_evaluated_networks(memory_mb: int) -> None:
    """And KL is to the original where the network is not it."""
    original = trained_cnn()
    network = enliven_(trained_cnn(), 5)
    given_one = context(
        network, original=original, compute=PLAIN.model_copy(update={"memory_mb": memory_mb})
    )
    some = real_candidates(given_one.trace)
    scoring = Scoring(images=10_000, calibration_images=128)
    with Engine.open(given_one, scoring) as engine:
        scored = engine.score(some)
    (inputs, _), *_ = digits().search.batches(64)
    p = log_softmax(call(original, inputs).double(), 1).exp()
    for found in scored:
        small = cut(network, given_one.trace.plan(found.candidate.choice))
        recalibrate_batch_norm_(small, digits().train, images=128, seed=0)
        expected = evaluate(small, digits().search)
        q = log_softmax(call(small, inputs).double(), 1)
        assert found.complete and found.images == 64
        assert found.top1 == pytest.approx(expected.top1, abs=1.01 / 64)
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        assert found.kl == pytest.approx(float((p * (p.log() - q)).sum(1).mean()), rel=1e-3)


@pytest.mark.parametrize("top", [None, 2])
def test_order_of_candidates_does_not_matter(top: int | None) -> None:
    given_one = context()
    some = real_candidates(given_one.trace)
    with Engine.open(given_one, SMALL) as engine:
        expected = engine.score(some, top)
    for order in (some[::-1],):
        with Engine.open(context(), SMALL) as engine:
            found = engine.score(order, top)
        assert sorted(summary(found)) == sorted(summary(expected))


def test_resumed_engine_gives_the_same_and_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_one = replace(context(), folder=tmp_path)
    some = real_candidates(given_one.trace)
    with Engine.open(given_one, SMALL) as engine:
        expected = engine.score(some, top=2)
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "__call__", None)
        with Engine.open(replace(context(), folder=tmp_path), SMALL) as engine:
            found = engine.score(some, top=2)
    assert summary(found) == summary(expected)
    with Engine.open(given_one, SMALL), pytest.raises(InputError):
        Engine.open(given_one, SMALL)  # one at a time


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "network": ({"network": None}, {}),
    "original": ({"original": None}, {}),
    "seed": ({"seed": 1}, {}),
    "calibration": ({}, {"calibration_images": 64}),
    "quick calibration": ({}, {"quick_calibration_images": 32}),
    "images": ({}, {"images": 48}),
    "batch": ({"compute": PLAIN.model_copy(update={"batch_size": 32})}, {}),
    "layout": ({"compute": PLAIN.model_copy(update={"layout": "channels_last"})}, {}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_folder_of_another_search_is_refused(change: str, tmp_path: Path) -> None:
    """All that decides a stored number."""
    given_one = replace(context(), folder=tmp_path)
    with Engine.open(given_one, SMALL) as engine:
        engine.score([Candidate({})])
    other, scoring = CHANGES[change]
    if "network" in other or "original" in other:
        other = {next(iter(other)): enliven_(trained_cnn(), 7)}
    with pytest.raises(InputError):
        Engine.open(replace(given_one, **other), SMALL.model_copy(update=scoring))


@pytest.mark.parametrize(
    "scoring",
    [{"fitness": "accuracy"}, {"first_images": 32}, {"growth": 3.0}, {"quick_images": 16}],
)
def test_what_decides_no_number_may_change(scoring: dict[str, Any], tmp_path: Path) -> None:
    given_one = replace(context(), folder=tmp_path)
    some = real_candidates(given_one.trace)
    with Engine.open(given_one, SMALL) as engine:
        engine.score(some, top=1)
    changed = SMALL.model_copy(update=scoring)
    with Engine.open(given_one, changed) as engine:
        found = engine.score(some, top=1)
    with Engine.open(context(), changed) as engine:
        assert ranked(found)[0].key == ranked(engine.score(some, top=1))[0].key


def test_missing_data_is_named_and_the_folder_stays_free(tmp_path: Path) -> None:
    given_one = replace(context(), folder=tmp_path)
    for name in ("train", "search"):
        missing: dict[str, Any] = {name: None}
        with pytest.raises(InputError, match=f"{name}="):
            Engine.open(replace(given_one, **missing), SMALL)
    with pytest.raises(InputError):
        Engine.open(
            replace(given_one, network=nn.Sequential(), original=trained_cnn(), source=None), SMALL
        ).score([Candidate({"nowhere": np.ones(3, dtype=bool)})])


def test_nothing_of_the_caller_changes() -> None:
    """Weights, modes of the original, the random state, and the number of threads."""
    original, network = trained_cnn().train(), trained_cnn()
    original.get_submodule("bn2").eval()
    modes = [m.training for m in original.modules()]
    before, original_before = bits_of(network), bits_of(original)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    given_one = context(
        network,
        original=original,
        compute=PLAIN.model_copy(update={"threads": 2, "layout": "auto"}),
    )
    with Engine.open(given_one, SMALL) as engine:
        engine.score(real_candidates(given_one.trace), top=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert unchanged(network, before)
    assert unchanged(original, original_before)
    assert [m.training for m in original.modules()] == modes


def test_modes_of_the_network_stay() -> None:
    network = trained_cnn().train()
    network.get_submodule("bn2").eval()
    modes, before = [m.training for m in network.modules()], bits_of(network)
    with Engine.open(replace(context(trained_cnn()), network=network), SMALL) as engine:
        engine.score([Candidate({})])
    assert [m.training for m in network.modules()] == modes
    assert unchanged(network, before)


@pytest.mark.slow
def test_processes_give_what_the_serial_run_gives() -> None:
    given_one = context(compute=PLAIN.model_copy(update={"threads": 1}))
    some = real_candidates(given_one.trace)
    with Engine.open(given_one, SMALL) as engine:
        expected = engine.score(some, top=2)
    two = Compute(**(given_one.compute.model_dump() | {"engine": "processes", "workers": 2}))
    for source in (None, "digits_cnn"):
        from prunus.records import Source

        named = None if source is None else Source(model=source)
        with Engine.open(replace(given_one, compute=two, source=named), SMALL) as engine:
            found = engine.score(some, top=2)
        assert summary(found) == summary(expected)


# The order of images


@given(st.integers(1, 300), st.integers(0, 100))
def test_every_beginning_is_spread_evenly(count: int, seed: int) -> None:
    """Any first n of the images leave no gap much wider than one of count / n."""
    values = torch.from_numpy(np.random.default_rng(seed).permutation(count).astype(np.float64))
    order = spread_order(values)
    assert sorted(order.tolist()) == list(range(count))
    for n in range(1, count + 1):
        ranks = np.sort(values[order[:n]].numpy())
        gaps = np.diff(np.concatenate([[-1.0], ranks, [float(count)]]))
        assert gaps.max() <= 2 * count / n + 2


def test_images_keep_their_labels_and_logits() -> None:
    given_one = context()
    held = gather_images(given_one, SMALL)
    logits = call(given_one.network, held.search)
    assert torch.allclose(logits, held.reference, atol=1e-5)
    pairs = {(x.numpy().tobytes(), int(y)) for x, y in zip(held.search, held.labels, strict=True)}
    (inputs, labels), *_ = digits().search.batches(64)
    assert pairs == {(x.numpy().tobytes(), int(y)) for x, y in zip(inputs, labels, strict=True)}
    entropy = -(log_softmax(logits.double(), 1).exp() * log_softmax(logits.double(), 1)).sum(1)
    np.testing.assert_array_equal(
        np.argsort(held.difficulty.numpy(), kind="stable")[:5],
        np.argsort((entropy * 1e4).round().numpy(), kind="stable")[:5],
    )


def test_beginnings_are_as_hard_as_the_whole_on_average() -> None:
    """A beginning that takes the easiest of every stretch would be too easy."""
    difficulty = torch.from_numpy(np.random.default_rng(0).lognormal(0.0, 1.5, 2000))
    order = spread_order(difficulty)
    whole = float(difficulty.mean())
    for first in (64, 128, 256, 512):
        assert float(difficulty[order[:first]].mean()) == pytest.approx(whole, rel=0.15)
