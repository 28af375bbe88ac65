"""The engine on scripted scores, a number per image: what it looks at, ranks and remembers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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

from prunus.candidates import Candidate, Engine, Scoring, ranked
from prunus.candidates.execution import ScoringExecution as Execution
from prunus.candidates.scorer import Images
from prunus.candidates.serial import SerialExecutor
from prunus.candidates.store import STORE_FILE, Store
from prunus.candidates.task import Result, Task
from prunus.candidates.workplace import Workplace
from prunus.graph import Trace, trace
from prunus.plan import KeepChannels
from tests.candidates.engines import PLAIN, SMALL, summary
from tests.helpers import all_but, chain, enliven_, images
from tests.recipe.subjects import Killed, Killer


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
