"""What a front serves later: a pick without a search, and where it has no place."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunus.errors import BudgetError, InputError, PlanMismatchError
from prunus.graph import cut, trace
from prunus.method import Budget, Decision, make_method
from prunus.plan import Bits, NetworkShape, ZeroConnections
from prunus.prune.magnitude import magnitude_scores
from prunus.recipe import Prune, Repeat, compress
from prunus.records import Front, FrontPoint
from prunus.zoo import build
from tests.prune.fronts import (
    IMAGE,
    choice_of,
    front_of,
    limit_of,
    require_exact,
    reuse,
    splits,
    traced,
    without_data,
)
from tests.recipe.subjects import few_digits, trained_cnn


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


def test_a_front_of_the_whole_network_has_no_place_behind_a_cut(saved: Path) -> None:
    """It is refused before anything is measured or trained, not when it is read."""
    pick = Prune(method="genetic", target="macs=0.5", options={"front": str(saved)})
    first = Prune(method="l2", target="macs=0.8")
    data = few_digits()
    with pytest.raises(
        InputError, match=r"option front: .*front\.json holds networks that were cut"
    ):
        compress(trained_cnn(), [first, pick], data, latency=None)
    rounds = Repeat(times=2, steps=(pick,))
    with pytest.raises(
        InputError, match=r"steps\[0\].repeat.steps\[0\].prune: option front=.* 2 rounds"
    ):
        compress(trained_cnn(), [rounds], data, latency=None)
    assert data.test.evaluations == 0
    once = Repeat(times=1, steps=(pick,))
    assert compress(trained_cnn(), [once], data, latency=None).plans


def test_a_front_of_a_cut_network_has_its_place_behind_the_cut(tmp_path: Path) -> None:
    first = Prune(method="l2", target="macs=0.8")
    search = Prune(
        method="genetic",
        target="macs=0.3",
        options={"mode": "front", "population": 4, "generations": 1, "images": 64},
    )
    compress(trained_cnn(), [first, search], few_digits(), latency=None, out=tmp_path / "run")
    (front,) = (tmp_path / "run" / "steps").glob("*.front.json")
    pick = Prune(method="genetic", target="macs=0.4", options={"front": str(front)})
    assert len(compress(trained_cnn(), [first, pick], few_digits(), latency=None).plans) == 2
    # A step that asks for no less than all cuts nothing.
    met = Prune(method="l2", target="macs=1.0")
    whole = Prune(method="genetic", target="macs=0.3", options=dict(search.options))
    compress(trained_cnn(), [whole], few_digits(), latency=None, out=tmp_path / "whole")
    (front,) = (tmp_path / "whole" / "steps").glob("*.front.json")
    pick = Prune(method="genetic", target="macs=0.4", options={"front": str(front)})
    assert compress(trained_cnn(), [met, pick], few_digits(), latency=None).plans


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
