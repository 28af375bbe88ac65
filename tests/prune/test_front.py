"""A front of quality and cost: what is on it, which network it gives, and what it serves later."""

import copy
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax

from prunus.compute import Compute
from prunus.data import DataSplits, load_data
from prunus.errors import BudgetError, InputError, MissingExtraError, PlanMismatchError
from prunus.graph import Choice, Trace, cut, trace
from prunus.meter import measure_cost
from prunus.method import Budget, Context, Decision, make_method
from prunus.plan import Bits, BoolArray, NetworkShape, ZeroConnections
from prunus.prune import uniform_choice
from prunus.prune.chromosome import Encoding
from prunus.prune.front import COST_STEP, _Costs, _has_settled
from prunus.prune.genetic_options import GeneticOptions
from prunus.prune.magnitude import magnitude_scores
from prunus.prune.proposals import Proposals
from prunus.recipe import Prune, compress
from prunus.records import Front, FrontPoint
from prunus.train import recalibrate_batch_norm_
from prunus.zoo import build
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


@pytest.fixture(scope="module")
def found() -> Decision:
    return search()


@pytest.fixture(scope="module")
def saved(found: Decision, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("front") / "front.json"
    front_of(found).save(path)
    return path


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


def require_no_better(points: list[tuple[float, ...]]) -> None:
    """None is as good as another everywhere and better somewhere; lower is better."""
    for a in points:
        for b in points:
            assert not (all(x <= y for x, y in zip(a, b, strict=True)) and a != b), (a, b)
    assert len(set(points)) == len(points)


# -- where it is looked for -----------------------------------------------------------------------


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


# -- what it serves later -------------------------------------------------------------------------


def without_data(target: str) -> Context:
    """Nothing to score on: a pick that scored anything would fail."""
    return replace(context(target), train=None, search=None)


def reuse(path: Path, target: str, given: Context | None = None) -> Decision:
    return make_method("genetic", {"front": str(path)}).decide(given or without_data(target))


@pytest.mark.parametrize("target", ["macs=0.6", "macs=0.9", "params=0.7", "size=40000"])
def test_another_budget_is_met_without_scoring(saved: Path, target: str, found: Decision) -> None:
    decision, budget = reuse(saved, target), Budget.parse(target)
    require_exact(budget, decision.choice)
    points = front_of(found).points
    costs = [budget.measure(traced(), choice_of(p)) for p in points]
    fittest = min(
        (p for p, cost in zip(points, costs, strict=True) if cost <= limit_of(budget)),
        key=lambda point: point.fitness,
    )
    for name, keep in choice_of(fittest).items():
        assert (decision.choice[name] | ~keep).all()
    assert decision.evaluations == 0
    assert decision.history == ()
    assert f"fitness {fittest.fitness:.4f}" in decision.notes[0]


def test_room_that_is_left_goes_to_the_largest_units(saved: Path, found: Decision) -> None:
    decision = reuse(saved, "macs=0.95")
    norms = magnitude_scores(trained_cnn(), traced(), norm="l2", axes="out")
    fittest = choice_of(front_of(found).points[0])
    added = 0
    for name, keep in decision.choice.items():
        new, out = keep & ~fittest[name], ~keep & ~fittest[name]
        added += int(new.sum())
        if new.any() and out.any():
            assert norms[name][new].min() >= norms[name][out].max()
    assert added > 0


def test_the_searchs_own_budget_gives_its_pick(saved: Path, found: Decision) -> None:
    (chosen,) = (point for point in front_of(found).points if point.chosen)
    decision = reuse(saved, "macs=0.4")
    for name, keep in choice_of(chosen).items():
        assert (decision.choice[name] | ~keep).all()


def made_front(points: list[tuple[float, int, tuple[ZeroConnections, ...]]]) -> Front:
    """Members of a fitness and with the first so many units of every group."""
    members = []
    for fitness, units, connections in points:
        keep = {g.name: np.arange(g.units) < units for g in traced().cuttable}
        cost = traced().cost(keep)
        member = FrontPoint(
            macs=cost.macs,
            params=cost.params,
            fitness=fitness,
            kl=fitness,
            loss=0.0,
            top1=0.0,
            keep={name: Bits.pack(kept) for name, kept in keep.items()},
            connections=connections,
        )
        members.append(member)
    return Front(source=traced().shape, points=tuple(members))


def one_kernel_less() -> ZeroConnections:
    stays = np.ones((24, 16), dtype=bool)
    stays[0, 1] = False
    return ZeroConnections(
        tensor="conv2.weight", level="kernel", shape=(24, 16), keep=Bits.pack(stays)
    )


def test_fitness_decides_not_cost_and_connections_come_along(tmp_path: Path) -> None:
    edit = one_kernel_less()
    path = tmp_path / "front.json"
    made_front([(0.3, 4, ()), (0.1, 6, (edit,)), (0.2, 8, ()), (0.05, 16, ())]).save(path)
    decision = reuse(path, "macs=0.3")
    assert decision.connections == (edit,)
    small = cut(trained_cnn(), traced().plan(decision.choice, decision.connections))
    assert not small.get_parameter("conv2.weight")[0, 1].any()


def test_members_that_may_not_be_cut_here_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    edit = one_kernel_less()
    made_front([(0.1, 3, ()), (0.2, 8, (edit,)), (0.3, 8, ()), (0.4, 2, ())]).save(path)
    wide = trace(trained_cnn(), IMAGE, min_units=6)
    decision = reuse(path, "macs=0.6", replace(without_data("macs=0.6"), trace=wide))
    assert decision.connections == (edit,)
    assert "fitness 0.2000" in decision.notes[0]
    assert "2 of 4 networks are within the target" in decision.notes[0]
    left_out = trace(trained_cnn(), IMAGE, min_units=6, ignore=["conv2"])
    with pytest.raises(BudgetError, match=r"none of the 4 networks in .*front.json can be cut as"):
        reuse(path, "macs=0.9", replace(without_data("macs=0.9"), trace=left_out))


def test_a_budget_below_the_cheapest_is_refused_with_its_cost(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    front = made_front([(0.1, 8, ()), (0.2, 6, ())])
    front.save(path)
    least = front.points[1].macs
    assert reuse(path, f"macs={least}").choice  # just reached
    with pytest.raises(
        BudgetError, match=rf"allows {least - 1}, the cheapest of the 2 .* {least}:"
    ):
        reuse(path, f"macs={least - 1}")
    # Before anything is trained, too; not where earlier steps lead to another network.
    method, network = make_method("genetic", {"front": str(path)}), trained_cnn()
    budget = Budget.parse(f"macs={least - 1}")
    with pytest.raises(BudgetError, match=rf"allows {least - 1}, the cheapest of the 2"):
        method.require_reachable(network, traced(), budget)
    front.model_copy(update={"source": NetworkShape(tensors={})}).save(path)
    method.require_reachable(network, traced(), budget)


def test_a_front_of_another_network_is_refused(saved: Path) -> None:
    other: nn.Module = build("digits_cnn", width=2.0).eval()
    given = replace(without_data("macs=0.5"), network=other, trace=trace(other, IMAGE))
    with pytest.raises(PlanMismatchError, match="is for another network"):
        reuse(saved, "macs=0.5", given)


def test_a_front_is_looked_at_before_anything_is_trained(saved: Path, tmp_path: Path) -> None:
    method = make_method("genetic", {"front": str(saved)})
    method.require_applicable(trained_cnn(), IMAGE)
    method.require_applicable(
        build("digits_cnn", width=2.0), IMAGE
    )  # cuts before it may lead there
    for other in (build("digits_cnn", width=0.5), build("vgg16_bn")):
        with pytest.raises(PlanMismatchError, match=r"front\.json is for another network"):
            method.require_applicable(other, IMAGE)
    record = tmp_path / "record.json"
    record.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"option front: .*record\.json is not .* mode=front"):
        make_method("genetic", {"front": str(record)}).require_applicable(trained_cnn(), IMAGE)


@pytest.mark.parametrize("content", [None, "{}", "no JSON"])
def test_what_is_no_front_is_refused_by_its_path(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "front.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"front\.json") as refusal:
        reuse(path, "macs=0.5")
    assert "\n" not in str(refusal.value)


def test_what_fills_the_budget_is_said_to_be_unscored(saved: Path, found: Decision) -> None:
    decision, budget = reuse(saved, "macs=0.95"), Budget.parse("macs=0.95")
    fittest = front_of(found).points[0]
    assert f"at {fittest.macs} of {limit_of(budget)} macs" in decision.notes[0]
    made = budget.measure(traced(), decision.choice)
    assert made > fittest.macs
    assert (
        f"fill the budget to {made} macs; with them the network was not scored" in decision.notes[1]
    )
    exact = reuse(saved, f"macs={fittest.macs}")
    assert len(exact.notes) == 1


def test_a_front_of_other_weights_is_told(saved: Path, found: Decision, tmp_path: Path) -> None:
    said = "the front was found with other weights"
    assert not any(said in note for note in reuse(saved, "macs=0.6").notes)
    other = copy.deepcopy(trained_cnn())
    with torch.no_grad():
        other.get_parameter("conv1.weight")[0, 0, 0, 0] += 1
    given = replace(without_data("macs=0.6"), network=other)
    assert said in reuse(saved, "macs=0.6", given).notes[-1]
    before = tmp_path / "front.json"  # as versions wrote it that kept no digest
    front_of(found).model_copy(update={"weights": ""}).save(before)
    assert not any(said in note for note in reuse(before, "macs=0.6", given).notes)


@pytest.mark.parametrize(
    "options", [{"population": 30}, {"generations": 99}, {"objectives": "macs"}, {"mode": "paper"}]
)
def test_options_of_a_search_have_no_place_beside_a_front(
    saved: Path, options: dict[str, Any]
) -> None:
    (name,) = options
    with pytest.raises(InputError, match=rf"{name}=.* is of a search, and front= picks") as refusal:
        make_method("genetic", {"front": str(saved), **options})
    assert "\n" not in str(refusal.value)
    make_method("genetic", {"front": str(saved), "mode": "front"})


def test_a_run_is_not_resumed_with_another_front_in_the_file(saved: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "front.json", tmp_path / "run"
    shutil.copy(saved, file)

    def go() -> None:
        step = Prune(method="genetic", target="macs=0.6", options={"front": str(file)})
        compress(trained_cnn(), [step], splits(), out=out, resume=True, latency=None)

    go()
    front = Front.load(file)
    front.model_copy(update={"points": front.points[:-1]}).save(file)
    with pytest.raises(InputError, match=r"holds another run: files\..*front\.json was .* and is"):
        go()


def test_missing_front_is_refused_before_anything_runs() -> None:
    with pytest.raises(InputError, match=r"front='nowhere\.json'.*no such file; name the steps/01"):
        make_method("genetic", {"front": "nowhere.json"})
