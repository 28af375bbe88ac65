import numpy as np
import pytest

from prunus.graph import cut
from prunus.method import Context, Decision, make_method
from prunus.prune import RandomSearch
from prunus.train import evaluate, recalibrate_batch_norm_
from tests.contract.method_cases import context, splits


def search(evaluations: int, seed: int = 0, **options: object) -> tuple[Context, Decision]:
    given = context("macs=0.4", seed=seed)
    quick = {"images": 100, "recalibration_images": 64, **options}
    return given, RandomSearch(evaluations=evaluations, **quick).decide(given)


@pytest.fixture(scope="module")
def long() -> tuple[Context, Decision]:
    return search(12)


def test_the_best_is_never_worse_than_the_first(long: tuple[Context, Decision]) -> None:
    history = long[1].history
    losses = [point.values["loss"] for point in history]
    best = [point.values["best_loss"] for point in history]
    assert best == np.minimum.accumulate(losses).tolist()
    assert best[-1] < losses[0]  # the widths of this network are worth a search
    assert [point.step for point in history] == list(range(12))
    assert long[1].evaluations == 12


def test_the_decision_has_the_loss_that_the_history_says(long: tuple[Context, Decision]) -> None:
    given, decision = long
    smaller = cut(given.network, given.trace.plan(decision.choice))
    recalibrate_batch_norm_(smaller, splits().train, images=64, seed=0)
    loss = evaluate(smaller, splits().search.subset(100, 0)).loss
    assert loss == pytest.approx(decision.history[-1].values["best_loss"], rel=1e-6)


def test_the_first_proposal_is_the_uniform_l2_choice() -> None:
    given, decision = search(1)
    uniform = make_method("l2").decide(given).choice
    assert all((decision.choice[name] == uniform[name]).all() for name in uniform)


def test_more_evaluations_continue_the_same_sequence(long: tuple[Context, Decision]) -> None:
    _, short = search(4)
    assert [p.values for p in short.history] == [p.values for p in long[1].history[:4]]


def test_the_seed_changes_the_proposals(long: tuple[Context, Decision]) -> None:
    _, other = search(3, seed=1)
    mine = [p.values["loss"] for p in long[1].history[1:3]]
    assert [p.values["loss"] for p in other.history[1:]] != mine
