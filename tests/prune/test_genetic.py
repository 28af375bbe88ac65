"""The genetic search: its stages, its modes on a budget, killed and resumed, here and elsewhere."""

import copy
import sqlite3
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from prunus.compute import Compute
from prunus.data import DataSplits, load_data
from prunus.errors import BudgetError, InputError
from prunus.graph import Choice, Trace, certify, cut, held_connections, trace
from prunus.method import Budget, Context, Decision, make_method
from prunus.prune import Genetic, uniform_choice
from prunus.prune.chromosome import Encoding
from prunus.prune.genetic_options import GeneticOptions
from prunus.prune.importance import importance_scores
from prunus.prune.magnitude import magnitude_scores
from prunus.prune.proposals import Proposals
from prunus.records import HistoryPoint
from prunus.train import recalibrate_batch_norm_
from tests.helpers import images
from tests.recipe.subjects import Killed, Killer, trained_cnn

POPULATION, PARENTS, GENERATIONS, IMAGES = 5, 2, 2, 64
QUICK: dict[str, Any] = {
    "population": POPULATION,
    "parents": PARENTS,
    "generations": GENERATIONS,
    "images": IMAGES,
    "recalibration_images": 64,
}
MODES = ("guided", "paper", "front")
every_mode = pytest.mark.parametrize("mode", MODES)
Values = list[tuple[str, int, dict[str, float]]]


@cache
def splits() -> DataSplits:
    return load_data("digits")


@cache
def traced(step: int = 1) -> Trace:
    return trace(trained_cnn(), images(2, 1, 8, 8), min_units=step, round_to=step)


def context(target: str = "macs=0.4", seed: int = 0, step: int = 1, **more: Any) -> Context:
    data, compute = splits(), Compute(threads=1, precision="float32", layout="contiguous")
    known: dict[str, Any] = {"train": data.train, "search": data.search, "compute": compute, **more}
    return Context(trained_cnn(), traced(step), Budget.parse(target), seed, **known)


def decide(given: Context | None = None, **options: Any) -> Decision:
    return make_method("genetic", {**QUICK, **options}).decide(given or context())


def scores(choice: Choice, connections: Any = ()) -> dict[str, float]:
    """KL, loss and top-1 by definition: cut, recalibrated, run, compared."""
    smaller = cut(trained_cnn(), traced().plan(choice, connections))
    recalibrate_batch_norm_(smaller, splits().train, images=64, seed=0)
    inputs, labels = next(splits().search.subset(IMAGES, 0).batches(IMAGES))
    with torch.no_grad():
        ours = log_softmax(smaller(inputs).double(), 1)
        dense = log_softmax(trained_cnn()(inputs).double(), 1)
    return {
        "kl": float(kl_div(ours, dense, reduction="batchmean", log_target=True)),
        "loss": float(cross_entropy(ours, labels)),
        "top1": float((ours.argmax(1) == labels).double().mean()),
    }


def points(decision: Decision, phase: str) -> list[HistoryPoint]:
    return [point for point in decision.history if point.phase == phase]


def facts(decision: Decision) -> tuple[object, ...]:
    """All of a decision but the seconds."""
    values: Values = [(p.phase, p.step, p.values) for p in decision.history]
    kept = {name: keep.tolist() for name, keep in decision.choice.items()}
    front = None if decision.front is None else decision.front.points
    return kept, decision.connections, values, decision.evaluations, front, decision.notes


def require_exact(budget: Budget, choice: Choice, step: int = 1) -> None:
    """Within the limit, and one step more in any group would be beyond it."""
    found = traced(step)
    limit = budget.limit(budget.measure(found, {}))
    assert budget.measure(found, choice) <= limit
    for name, keep in choice.items():
        wider = keep.copy()
        wider[np.flatnonzero(~keep)[:step]] = True
        assert keep.all() or budget.measure(found, {**choice, name: wider}) > limit, name


# -- the stages -----------------------------------------------------------------------------------


def test_settings_of_the_paper() -> None:
    options = Genetic(mode="paper").options.settled()
    assert (options.population, options.parents) == (30, 5)
    assert (options.crossover, options.mutation) == (0.6, 0.6)
    assert (options.mixing, options.sampling, options.fitness) == ("break-point", "uniform", "loss")
    assert options.connections is not None
    assert 0 < options.connections < 1  # both encodings at once
    assert options.moves == 0


def test_what_is_said_is_not_settled_otherwise() -> None:
    said = {"moves": 0.7, "sampling": "importance", "mixing": "uniform", "fitness": "accuracy"}
    options = GeneticOptions.model_validate({"mode": "paper", "connections": 1, **said}).settled()
    assert {**said, "connections": 1}.items() <= options.model_dump().items()


@pytest.mark.parametrize(("mode", "quantity"), [("guided", "kl"), ("paper", "loss")])
def test_without_generations_the_best_of_the_first_population_stays(
    mode: str, quantity: str
) -> None:
    decision = decide(mode=mode, generations=0, halving=False)
    found = [point.values[quantity] for point in points(decision, "genetic")]
    assert len(found) == POPULATION
    assert len(set(found)) > 1
    mine = scores(decision.choice, decision.connections)[quantity]
    assert mine == pytest.approx(min(found), rel=1e-3)


@pytest.mark.parametrize(("mode", "quantity"), [("guided", "kl"), ("paper", "loss")])
def test_every_generation_has_new_children_and_never_a_worse_best(mode: str, quantity: str) -> None:
    decision = decide(mode=mode, halving=False)
    proposed = points(decision, "genetic")
    assert len(proposed) == POPULATION + GENERATIONS * (POPULATION - PARENTS)
    assert [p.step for p in proposed] == list(range(len(proposed)))
    generations = points(decision, "search by generation")
    assert [p.step for p in generations] == list(range(GENERATIONS + 1))
    found = np.round([p.values[quantity] for p in proposed], 4)
    for number, point in enumerate(generations):
        seen = found[: POPULATION + number * (POPULATION - PARENTS)]
        assert point.values["best_fitness"] == pytest.approx(seen.min(), abs=1e-4)
        fittest = np.sort(seen)[:PARENTS]
        assert point.values["mean of the parents"] >= fittest.mean() - 1e-4
    assert scores(decision.choice, decision.connections)[quantity] == pytest.approx(
        found.min(), rel=1e-3
    )


def test_every_network_is_scored_once_the_parents_too(tmp_path: Path) -> None:
    decision = decide(context(folder=tmp_path), halving=False)
    connection = sqlite3.connect(tmp_path / "candidates.sqlite")
    rows = connection.execute("SELECT key, start, stop FROM results").fetchall()
    connection.close()
    assert decision.evaluations == len(rows) == len({key for key, _, _ in rows})
    assert decision.evaluations <= POPULATION + GENERATIONS * (POPULATION - PARENTS)


def test_guided_search_ends_better_than_its_rankings() -> None:
    """The first two proposals are the rankings by importance, the first of them the uniform one."""
    given = context()
    decision = decide(given, generations=6, halving=False, importance="l2")
    found = [point.values["kl"] for point in points(decision, "genetic")]
    ranking = uniform_choice(traced(), given.budget, importance_scores(given, "l2"))
    assert found[0] == pytest.approx(scores(ranking)["kl"], rel=1e-3)
    best = [p.values["best_fitness"] for p in points(decision, "search by generation")]
    assert best == sorted(best, reverse=True)
    assert best[-1] <= min(found[:POPULATION]) + 1e-4
    assert best[-1] < 0.95 * min(found[:2])


def test_dropping_candidates_on_the_way_leaves_the_parents_fully_seen() -> None:
    decision = decide(population=12, parents=2, images=288, connections=0.8)
    proposed = points(decision, "genetic")
    complete = [p for p in proposed if p.values["complete"]]
    assert {p.values["images"] for p in complete} == {288}
    assert PARENTS <= len(complete) < len(proposed)
    best = [p.values["best_fitness"] for p in points(decision, "search by generation")]
    assert best == sorted(best, reverse=True)
    assert best[-1] == pytest.approx(min(p.values["kl"] for p in complete), abs=1e-4)


def test_search_ends_when_it_no_longer_improves() -> None:
    decision = decide(generations=9, patience=2, tolerance=100.0)
    assert [p.step for p in points(decision, "search by generation")] == [0, 1, 2]
    assert len(points(decision, "genetic")) == POPULATION + 2 * (POPULATION - PARENTS)


def test_importance_by_name() -> None:
    given = context()
    norms = magnitude_scores(given.network, traced(), norm="l2", axes="out")
    found = importance_scores(given, "l2")
    assert all((found[name] == norms[name]).all() for name in norms)
    taylor = importance_scores(given, "taylor")
    assert {n: s.shape for n, s in taylor.items()} == {n: s.shape for n, s in norms.items()}
    assert all((s >= 0).all() for s in taylor.values())
    assert any((np.argsort(taylor[n]) != np.argsort(norms[n])).any() for n in norms)
    bare = Context(given.network, given.trace, given.budget, 0)
    assert importance_scores(bare, "l2").keys() == norms.keys()
    with pytest.raises(InputError, match="importance=taylor needs training data"):
        importance_scores(bare, "taylor")


# -- what the house relies on, in every mode ------------------------------------------------------


@pytest.mark.parametrize("target", ["macs=0.5", "params=0.4", "size=15000"])
@every_mode
def test_budget_is_met_to_a_unit(mode: str, target: str) -> None:
    given = context(target)
    require_exact(given.budget, decide(given, mode=mode, generations=1).choice)


@every_mode
def test_least_legal_network_and_no_less(mode: str) -> None:
    found = traced(4)
    least = found.params({g.name: np.arange(g.units) < 4 for g in found.cuttable})
    choice = decide(context(f"params={least}", step=4), mode=mode, generations=1).choice
    assert {int(keep.sum()) for keep in choice.values()} == {4}
    with pytest.raises(BudgetError, match=rf"params={least - 1}\b.*\b{least}\b"):
        decide(context(f"params={least - 1}", step=4), mode=mode)


@every_mode
def test_widths_keep_to_the_grid(mode: str) -> None:
    given = context(step=4)
    choice = decide(given, mode=mode, connections=0.6).choice
    assert all(int(keep.sum()) % 4 == 0 for keep in choice.values())
    assert given.budget.measure(traced(4), choice) <= given.budget.limit(traced(4).macs({}))


@every_mode
def test_a_seed_decides_everything_and_nothing_else_is_touched(mode: str) -> None:
    given = context(seed=3)
    before = copy.deepcopy(given.network.state_dict())
    states = torch.get_rng_state(), str(np.random.get_state(legacy=False))  # noqa: NPY002
    first = decide(given, mode=mode)
    after = given.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not given.network.training
    assert all(p.grad is None and p.requires_grad for p in given.network.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert str(np.random.get_state(legacy=False)) == states[1]  # noqa: NPY002
    assert facts(decide(context(seed=3), mode=mode)) == facts(first)
    assert facts(decide(context(seed=4), mode=mode)) != facts(first)


def test_connections_are_zero_in_a_certified_network() -> None:
    decision = decide(mode="paper", connections=0.7)
    assert {edit.level for edit in decision.connections} == {"kernel", "weight"}
    plan = traced().plan(decision.choice, decision.connections)
    small = cut(trained_cnn(), plan)
    assert certify(trained_cnn(), traced(), plan, images(4, 1, 8, 8)).passed
    for name, mask in held_connections(small).items():
        assert (small.get_parameter(name)[~mask] == 0).all()
    held = torch.cat([mask.flatten().float() for mask in held_connections(small).values()])
    assert float(held.mean()) == pytest.approx(0.7, abs=0.1)
    assert any("30.0% of the connection genes are 0" in note for note in decision.notes)


def test_what_neurons_without_connections_leave_goes_to_others() -> None:
    """Never exceeded. Without that, populations here use 70 to 92 % of the budget."""
    given, found = context("macs=0.5"), traced()
    limit = given.budget.limit(found.macs({}))
    encoding = Encoding(given.network, found)
    for seed in range(6):
        made = Proposals(
            encoding=encoding,
            trace=found,
            options=GeneticOptions(mode="paper", connections=0.2).settled(),
            scores=None,
            generator=np.random.default_rng([seed, 0]),
        ).initial(given.budget, 2)
        candidate = encoding.candidate(made)
        plan = found.plan(candidate.choice, candidate.connections)
        assert 0.93 * limit < found.macs(plan.channels) <= limit


def test_who_breeds_and_what_is_drawn_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream for both would couple the choice of parents with the genes of their children."""
    drawn: list[np.random.Generator] = []

    def noted(**given: Any) -> Proposals:
        drawn.append(copy.deepcopy(given["generator"]))
        return Proposals(**given)

    monkeypatch.setattr("prunus.prune.genetic.Proposals", noted)
    decide(context(seed=5), generations=0)
    parents = np.random.default_rng(5).integers(0, 2**32, 1000)
    genes = drawn[0].integers(0, 2**32, 1000)
    assert not np.intersect1d(parents, genes).size  # by chance, one in 4000


@every_mode
def test_a_network_without_anything_to_cut_stays_as_it_is(mode: str) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    found = trace(network, images(2, 1, 8, 8))
    given = replace(context("macs=1"), network=network, trace=found)
    assert not found.cuttable
    assert decide(given, mode=mode, mutation=1.0, moves=0.5).choice == {}


@pytest.mark.parametrize("mode", ["guided", "front"])
def test_connections_that_cannot_use_the_budget_are_told(mode: str) -> None:
    """Of conv1's 16 kernels one stays: 15 of its units are lost whatever the budget."""
    decision = decide(context("macs=0.9"), mode=mode, connections=0.02, generations=1)
    (note,) = (note for note in decision.notes if "are used" in note)
    assert "raise connections=0.02 to use more" in note
    assert not any("are used" in n for n in decide(mode=mode, generations=1).notes)


# -- lives and places -----------------------------------------------------------------------------


@pytest.mark.parametrize(("phase", "advance"), [("generations", 2), ("score candidates", 500)])
def test_killed_and_run_again_it_decides_the_same(tmp_path: Path, phase: str, advance: int) -> None:
    whole = decide(mode="paper")
    with pytest.raises(Killed):
        decide(context(folder=tmp_path, progress=Killer(phase, advance)), mode="paper")
    assert facts(decide(context(folder=tmp_path), mode="paper")) == facts(whole)


@pytest.mark.parametrize("mode", ["guided", "front"])
def test_other_modes_go_on_too(tmp_path: Path, mode: str) -> None:
    with pytest.raises(Killed):
        decide(context(folder=tmp_path, progress=Killer("generations", 2)), mode=mode)
    assert facts(decide(context(folder=tmp_path), mode=mode)) == facts(decide(mode=mode))


@pytest.mark.slow
def test_processes_decide_what_this_process_decides() -> None:
    here = context()
    two = Compute(**(here.compute.model_dump() | {"engine": "processes", "workers": 2}))
    few = {"generations": 1, "mode": "paper"}
    assert facts(decide(context(compute=two), **few)) == facts(decide(here, **few))


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("missing", "words"), [("train", "training data"), ("search", "search data")]
)
def test_missing_data_is_refused(mode: str, missing: str, words: str) -> None:
    with pytest.raises(InputError, match=rf"'genetic' needs {words}.*{missing}=") as refusal:
        decide(
            replace(context(), train=None)
            if missing == "train"
            else replace(context(), search=None),
            mode=mode,
        )
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "random"},
        {"population": 1},
        {"parents": 0},
        {"generations": -1},
        {"patience": 0},
        {"crossover": 1.5},
        {"mutation": -0.1},
        {"swaps": 0.9},
        {"moves": 3.0},
        {"jitter": 0.0},
        {"temperature": -1.0},
        {"temperature": float("inf")},
        {"sampling": "both"},
        {"importance": "l1"},
        {"mixing": "two-point"},
        {"connections": 0.0},
        {"connections": 1.5},
        {"fitness": "f1"},
        {"images": 1},
        {"objectives": 3},
        {"front": ""},
    ],
)
def test_bad_option_is_refused_by_name_and_value(options: dict[str, object]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(InputError) as refusal:
        make_method("genetic", {**QUICK, **options})
    assert f"option {name}={value!r} of method 'genetic'" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"population": 4, "parents": 4}, "parents=4 must be fewer than population=4"),
        ({"mode": "front", "objectives": "macs,macs"}, "objectives=('macs', 'macs')"),
        ({"objectives": "macs,params"}, "('macs', 'params') has no effect without mode=front"),
        ({"mode": "paper", "importance": "taylor"}, "'taylor' has no effect without sampling="),
        (
            {"sampling": "uniform", "temperature": 1},
            "1.0 has no effect without sampling=importance",
        ),
        (
            {"tolerance": 0.1},
            "tolerance=0.1 has no effect without patience: set that too, or leave",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refusal:
        make_method("genetic", options)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "front", "objectives": "macs,params"},
        {"mode": "paper", "sampling": "importance", "importance": "taylor", "temperature": 0.5},
        {"patience": 2, "tolerance": 0.1},
    ],
    ids=["front", "paper by importance", "patience"],
)
def test_options_of_another_mode_are_taken_where_they_have_an_effect(
    options: dict[str, Any],
) -> None:
    method = make_method("genetic", options)
    assert isinstance(method, Genetic)
    assert method.options.model_fields_set == set(options)


def test_options_that_do_not_go_together_are_not_blamed_on_one_that_is_none() -> None:
    with pytest.raises(InputError) as refusal:
        make_method("genetic", {"population": 4, "parents": 4})
    assert "value=None" not in str(refusal.value)
