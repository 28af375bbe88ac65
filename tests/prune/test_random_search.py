from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from prunus.compute import Compute
from prunus.data import DataSplits, load_data
from prunus.graph import Trace, cut, trace
from prunus.method import Budget, Context, Decision, make_method
from prunus.prune import RandomSearch
from prunus.train import recalibrate_batch_norm_
from tests.recipe.subjects import trained_cnn

IMAGES = 100


@cache
def splits() -> DataSplits:
    return load_data("digits")


@cache
def traced() -> Trace:
    return trace(trained_cnn(), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))


def search(
    evaluations: int, seed: int = 0, original: nn.Module | None = None, **options: object
) -> Decision:
    data, budget = splits(), Budget.parse("macs=0.4")
    given = Context(
        trained_cnn(),
        traced(),
        budget,
        seed,
        data.train,
        data.search,
        original=original,
        compute=Compute(precision="float32", layout="contiguous"),
    )
    quick = {"images": IMAGES, "recalibration_images": 64, "halving": False, **options}
    return RandomSearch(evaluations=evaluations, **quick).decide(given)


def scores(decision: Decision, original: nn.Module | None = None) -> dict[str, float]:
    """KL, loss and top-1 of the choice, by definition: cut, recalibrated, run, compared."""
    smaller = cut(trained_cnn(), traced().plan(decision.choice))
    recalibrate_batch_norm_(smaller, splits().train, images=64, seed=0)
    inputs, labels = next(splits().search.subset(IMAGES, 0).batches(IMAGES))
    with torch.no_grad():
        ours = log_softmax(smaller(inputs).double(), 1)
        dense = log_softmax((original or trained_cnn())(inputs).double(), 1)
    return {
        "kl": float(kl_div(ours, dense, reduction="batchmean", log_target=True)),
        "loss": float(cross_entropy(ours, labels)),
        "top1": float((ours.argmax(1) == labels).double().mean()),
    }


def values(decision: Decision, name: str) -> list[float]:
    return [point.values[name] for point in decision.history]


@pytest.fixture(scope="module")
def long() -> Decision:
    return search(12)


def test_the_best_is_never_worse_than_the_first(long: Decision) -> None:
    found, best = np.round(values(long, "kl"), 4), np.round(values(long, "best_kl"), 4)
    assert best.tolist() == np.minimum.accumulate(found).tolist()
    assert best[-1] < found[0]  # the widths of this network are worth a search
    assert [point.step for point in long.history] == list(range(12))
    assert long.evaluations == len(set(found.tolist())) < 12  # some proposals are one network


def test_the_decision_has_the_scores_that_the_history_says(long: Decision) -> None:
    mine = scores(long)
    assert mine["kl"] == pytest.approx(values(long, "best_kl")[-1], rel=1e-3)
    winner = int(np.argmin(values(long, "kl")))
    for name, score in mine.items():
        assert score == pytest.approx(values(long, name)[winner], rel=1e-3), name


def test_closeness_is_to_the_network_before_all_cuts() -> None:
    original = trained_cnn()
    with torch.no_grad():
        original.get_parameter("fc.weight").mul_(-1)  # what it says is the contrary
    decision = search(2, original=original)
    mine = scores(decision, original)
    assert mine["kl"] == pytest.approx(values(decision, "best_kl")[-1], rel=1e-3)
    assert mine["kl"] > 1.5 * scores(decision)["kl"]


@pytest.mark.parametrize(
    ("fitness", "quantity", "better"),
    [("loss", "loss", np.minimum), ("accuracy", "top1", np.maximum)],
)
def test_other_quantities_can_decide(fitness: str, quantity: str, better: np.ufunc) -> None:
    decision = search(8, fitness=fitness)
    found = np.round(values(decision, quantity), 4)
    best = np.round(values(decision, f"best_{quantity}"), 4)
    assert best.tolist() == better.accumulate(found).tolist()
    assert scores(decision)[quantity] == pytest.approx(best[-1], abs=2e-4)


def test_halving_sees_the_best_on_all_images_and_others_on_few() -> None:
    whole = search(24, images=288)
    halved = search(24, images=288, halving=True)
    seen = values(halved, "images")
    assert set(values(whole, "images")) == {288}
    assert min(seen) <= 128 < max(seen) == 288
    finished = [p for p in halved.history if p.values["complete"]]
    assert len(finished) < len(halved.history) == 24
    # what was seen on all images got the scores that it gets without halving
    for point in finished:
        assert point.values["images"] == 288
        alone = whole.history[point.step].values["kl"]
        assert point.values["kl"] == pytest.approx(alone, abs=1e-6)
    last = halved.history[-1].values["best_kl"]
    assert last == pytest.approx(min(p.values["kl"] for p in finished), abs=1e-4)
    assert last == pytest.approx(whole.history[-1].values["best_kl"], abs=1e-4)
    choices = [decision.choice for decision in (halved, whole)]
    assert all((choices[0][name] == choices[1][name]).all() for name in choices[1])


def test_the_first_proposal_is_the_uniform_l2_choice() -> None:
    data = splits()
    given = Context(trained_cnn(), traced(), Budget.parse("macs=0.4"), 0, data.train, data.search)
    uniform = make_method("l2").decide(given).choice
    choice = search(1).choice
    assert all((choice[name] == uniform[name]).all() for name in uniform)


def test_without_jitter_all_widths_are_the_uniform_ones_and_with_much_they_are_many() -> None:
    data = splits()
    given = Context(trained_cnn(), traced(), Budget.parse("macs=0.4"), 0, data.train, data.search)

    def profiles(jitter: float) -> list[list[int]]:
        made = RandomSearch(evaluations=8, jitter=jitter)._propose(given)
        return [[int(keep.sum()) for keep in one.choice.values()] for one in made]

    uniform, *others = profiles(1e-4)
    for widths in others:  # what the budget has left may go to another group
        assert max(abs(a - b) for a, b in zip(widths, uniform, strict=True)) <= 1
    assert len({tuple(widths) for widths in profiles(1.0)}) > 4


def test_more_evaluations_continue_the_same_sequence(long: Decision) -> None:
    assert [p.values for p in search(4).history] == [p.values for p in long.history[:4]]


def test_proposals_that_are_one_network_count_once() -> None:
    """With a single group to cut there is one width for a budget."""
    network = trained_cnn()
    found = trace(network, torch.randn(2, 1, 8, 8), ignore=["conv2", "conv3"])
    assert len(found.cuttable) == 1
    data, compute = splits(), Compute(precision="float32", layout="contiguous")
    budget = Budget.parse("macs=0.9")
    given = Context(network, found, budget, 0, data.train, data.search, compute=compute)
    method = RandomSearch(evaluations=5, images=IMAGES, recalibration_images=64)
    assert method.decide(given).evaluations == 1


def test_the_seed_changes_the_proposals(long: Decision) -> None:
    assert values(search(3, seed=1), "kl")[1:] != values(long, "kl")[1:3]
