"""A front of quality and cost: what is on it, and which network it gives."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from prunus.errors import BudgetError, MissingExtraError
from prunus.graph import cut
from prunus.meter import measure_cost
from prunus.method import Budget, Decision
from prunus.prune import uniform_choice
from prunus.prune.chromosome import Encoding
from prunus.prune.front import COST_STEP, _Costs, _has_settled
from prunus.prune.genetic_options import GeneticOptions
from prunus.prune.proposals import Proposals
from prunus.records import Front
from prunus.train import recalibrate_batch_norm_
from tests.prune.fronts import (
    IMAGE,
    choice_of,
    context,
    front_of,
    limit_of,
    require_exact,
    reuse,
    search,
    splits,
    traced,
)
from tests.recipe.subjects import trained_cnn


def require_no_better(points: list[tuple[float, ...]]) -> None:
    """None is as good as another everywhere and better somewhere; lower is better."""
    for a in points:
        for b in points:
            assert not (all(x <= y for x, y in zip(a, b, strict=True)) and a != b), (a, b)
    assert len(set(points)) == len(points)


def costs_of(target: str) -> tuple[_Costs, Proposals]:
    given = context(target)
    proposals = Proposals(
        encoding=Encoding(given.network, given.trace),
        trace=given.trace,
        options=GeneticOptions(mode="front").settled(),
        scores=None,
        generator=np.random.default_rng(0),
    )
    return _Costs(given, proposals), proposals


def test_the_first_population_is_spread_evenly_over_the_logarithm_of_the_cost() -> None:
    costs, _ = costs_of("macs=0.0625")
    found = costs.spread(4)
    assert found[0] == Budget.parse("macs=0.0625")
    # From a sixteenth to the whole in four steps: each doubles the cost.
    assert [one.value for one in found[1:]] == pytest.approx([1 / 8, 1 / 4, 1 / 2], rel=1e-3)
    assert {one.quantity for one in found} == {"macs"}


def test_the_cost_of_a_child_is_drawn_around_the_geometric_mean_of_its_parents() -> None:
    costs, proposals = costs_of("macs=0.0625")
    quarter, ones = Budget.parse("macs=0.25"), {g.name: np.ones(g.units) for g in traced().cuttable}
    whole = proposals.encoding.full()
    small = proposals.encoding.with_neurons(whole, uniform_choice(traced(), quarter, ones))
    share = traced().macs(proposals.encoding.neurons(small)) / traced().macs({})
    logs = np.log([costs.between(small, whole).value for _ in range(400)])
    assert np.mean(logs) == pytest.approx(np.log(share) / 2, abs=4 * COST_STEP / 400**0.5)
    assert np.std(logs) == pytest.approx(COST_STEP, rel=0.15)


# -- what is on it --------------------------------------------------------------------------------


@pytest.mark.parametrize("objectives", ["macs", "params", "macs,params"])
def test_no_member_is_better_and_cheaper_than_another(objectives: str, found: Decision) -> None:
    decision = found if objectives == "macs" else search(objectives=objectives)
    # The target limits MACs, which are an objective therefore, behind those that are asked for.
    names = [*dict.fromkeys([*objectives.split(","), "macs"])]
    members = [
        (p.fitness, *(getattr(p, name) for name in names)) for p in front_of(decision).points
    ]
    require_no_better(members)
    assert members == sorted(members)
    assert len(members) > 2


def test_nothing_that_was_scored_is_better_and_cheaper_than_a_member(found: Decision) -> None:
    best = min(p.values["kl"] for p in found.history if "kl" in p.values)
    assert min(p.fitness for p in front_of(found).points) == pytest.approx(best, abs=1e-4)


def test_members_cost_and_score_what_they_say(found: Decision) -> None:
    inputs, labels = next(splits().search.subset(64, 0).batches(64))
    for point in front_of(found).points:
        cost = traced().cost(choice_of(point))
        assert (point.macs, point.params) == (cost.macs, cost.params)
        small = cut(trained_cnn(), traced().plan(choice_of(point), point.connections))
        measured = measure_cost(small, IMAGE[:1])
        assert (point.macs, point.params) == (measured.macs, measured.params)
        recalibrate_batch_norm_(small, splits().train, images=64, seed=0)
        with torch.no_grad():
            ours, dense = (log_softmax(n(inputs).double(), 1) for n in (small, trained_cnn()))
        kl = float(kl_div(ours, dense, reduction="batchmean", log_target=True))
        assert point.kl == pytest.approx(kl, rel=1e-3)
        assert point.fitness == pytest.approx(kl, abs=1e-4)
        assert point.top1 == pytest.approx(float((ours.argmax(1) == labels).double().mean()))


def test_members_with_few_connections_cost_what_they_say() -> None:
    for point in front_of(search(connections=0.3)).points:
        plan = traced().plan(choice_of(point), point.connections)
        measured = measure_cost(cut(trained_cnn(), plan), IMAGE[:1])
        assert (point.macs, point.params) == (measured.macs, measured.params)


def test_members_lie_between_the_budget_and_the_dense_network(found: Decision) -> None:
    """Proposals cost at most the dense network's, and the budget to a unit at least."""
    shares = [point.macs / traced().macs({}) for point in front_of(found).points]
    assert max(shares) < 1
    assert min(shares) > 0.4 * 0.95
    assert max(shares) > 0.6  # and spread out


def test_volume_never_shrinks(found: Decision) -> None:
    points = [p for p in found.history if p.phase == "search front"]
    volumes = [p.values["hypervolume"] for p in points]
    assert [p.step for p in points] == [0, 1, 2]
    assert volumes == sorted(volumes)
    assert 0 < volumes[0] <= volumes[-1] < 1
    assert points[-1].values["networks on the front"] == len(front_of(found).points)
    # the population is bred anew every generation, and nobody is dropped on the way
    scored = [p for p in found.history if p.phase == "genetic"]
    assert len(scored) == 8 * 3
    assert {p.values["complete"] for p in scored} == {1.0}


# -- what it gives --------------------------------------------------------------------------------


def test_chosen_is_the_fittest_within_the_budget_and_is_filled(found: Decision) -> None:
    budget, points = Budget.parse("macs=0.4"), front_of(found).points
    (chosen,) = (point for point in points if point.chosen)
    within = [point for point in points if point.macs <= limit_of(budget)]
    assert chosen.fitness == min(point.fitness for point in within)
    require_exact(budget, found.choice)
    for name, keep in choice_of(chosen).items():
        assert (found.choice[name] | ~keep).all()  # only filled: nothing is taken away


@pytest.mark.parametrize(
    ("target", "objectives"),
    [("params=0.5", "macs"), ("size=20000", "macs"), ("macs=0.5", "params")],
)
def test_what_the_budget_limits_is_an_objective(
    target: str, objectives: str, tmp_path: Path
) -> None:
    """Else the pick would be none of the front, and the same target not be met from its file."""
    decision, budget = search(target, objectives=objectives), Budget.parse(target)
    require_exact(budget, decision.choice)
    points = front_of(decision).points
    require_no_better([(p.fitness, float(p.macs), float(p.params)) for p in points])
    (chosen,) = (point for point in points if point.chosen)
    front_of(decision).save(tmp_path / "front.json")
    again = reuse(tmp_path / "front.json", target)
    for name, keep in choice_of(chosen).items():
        assert (again.choice[name] | ~keep).all()


def test_a_front_that_does_not_grow_ends_the_search() -> None:
    every = search(generations=4)
    ended = search(generations=4, patience=1, tolerance=10.0)
    volumes = [[p for p in d.history if "hypervolume" in p.values] for d in (every, ended)]
    assert [len(found) for found in volumes] == [5, 2]
    assert volumes[1][1].values == volumes[0][1].values


@pytest.mark.parametrize(
    ("volumes", "patience", "expected"),
    [
        ([0.5, 0.5], None, False),
        ([0.5, 0.6, 0.6], 1, True),
        ([0.5, 0.6, 0.6], 2, False),
        ([0.5, 0.6, 0.65, 0.69], 2, True),
        ([0.6], 1, False),
    ],
)
def test_settled_is_no_growth_over_the_last_generations(
    volumes: list[float], patience: int | None, *, expected: bool
) -> None:
    assert _has_settled(volumes, patience, 0.0901) is expected


def test_one_member_is_chosen_whatever_is_equally_good() -> None:
    """Accuracy on few images ties; the cheapest of the equally good is on the front, and the pick."""
    for seed in range(8):
        points = front_of(search("macs=0.8", seed, fitness="accuracy", images=4)).points
        assert sum(point.chosen for point in points) == 1


def test_front_survives_json(saved: Path, found: Decision) -> None:
    assert Front.load(saved) == front_of(found)
    assert Front.load(saved).source == traced().shape


def test_limit_of_nothing_is_refused_with_what_is_reachable() -> None:
    with pytest.raises(BudgetError, match="at least"):
        search("macs=1e-7")


def test_without_pymoo_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymoo", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'prunus\[front\]'"):
        search()
