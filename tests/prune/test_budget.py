from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.errors import BudgetError, InputError
from prunus.graph import Choice, Trace, trace
from prunus.method import TOLERANCE, Budget
from prunus.prune import global_choice, ratio_choice, uniform_choice
from prunus.prune.scores import FloatArray
from prunus.zoo import build
from tests.prune.networks import mlp

ALLOCATIONS = {"uniform": uniform_choice, "global": global_choice}
allocation = st.sampled_from(sorted(ALLOCATIONS))
quantity = st.sampled_from(["macs", "params", "size"])
model = st.sampled_from(["digits_cnn", "resnet20", "mobilenet_v2"])
grid = st.sampled_from([(1, 1), (3, 1), (2, 3), (1, 4)])


@cache
def traced(name: str, min_units: int = 1, round_to: int = 1) -> Trace:
    network = build(name, width=1.0 if name == "digits_cnn" else 0.5)
    inputs = torch.randn(2, 1, 8, 8) if name == "digits_cnn" else torch.randn(2, 3, 32, 32)
    return trace(network, inputs, min_units=min_units, round_to=round_to, verify=False)


@cache
def traced_mlp() -> Trace:
    return trace(mlp((2, 4, 4, 2)), torch.randn(2, 2))


def random_scores(of: Trace, seed: int) -> dict[str, FloatArray]:
    generator = np.random.default_rng(seed)
    return {g.name: generator.lognormal(sigma=1.0, size=g.units) for g in of.cuttable}


def counts(choice: Choice) -> dict[str, int]:
    return {name: int(keep.sum()) for name, keep in choice.items()}


@settings(max_examples=60)
@given(allocation, model, grid, quantity, st.floats(0.4, 1.0), st.integers(0, 1000))
def test_budget_is_never_exceeded_and_nothing_more_fits(
    how: str, name: str, legal: tuple[int, int], of: str, share: float, seed: int
) -> None:
    found = traced(name, *legal)
    scores, budget = random_scores(found, seed), Budget.parse(f"{of}={share}")
    choice = dict(ALLOCATIONS[how](found, budget, scores))
    limit = budget.limit(budget.measure(found, {}))
    assert budget.measure(found, choice) <= limit
    assert set(choice) == {g.name for g in found.cuttable}
    for group in found.cuttable:
        keep, mine = choice[group.name], scores[group.name]
        kept = int(keep.sum())
        assert kept >= min(group.min_units, group.units)
        assert kept % group.round_to == 0 or kept == group.units
        if kept == group.units:
            continue
        assert mine[keep].min() >= mine[~keep].max()  # the best of the group stay
        wider = keep.copy()
        wider[np.flatnonzero(~keep)[: group.round_to]] = True
        assert budget.measure(found, {**choice, group.name: wider}) > limit


@given(allocation, quantity, st.floats(0.2, 1.0), st.integers(0, 1000))
def test_a_network_of_many_units_is_within_one_percent(
    how: str, of: str, share: float, seed: int
) -> None:
    found = traced("mobilenet_v2")
    budget = Budget.parse(f"{of}={share}")
    choice = ALLOCATIONS[how](found, budget, random_scores(found, seed))
    limit = budget.limit(budget.measure(found, {}))
    assert (1 - TOLERANCE) * limit <= budget.measure(found, choice) <= limit


@given(allocation, quantity, st.floats(0.2, 0.8), st.floats(0.1, 0.2), st.integers(0, 1000))
def test_a_larger_budget_keeps_what_a_smaller_one_kept(
    how: str, of: str, share: float, more: float, seed: int
) -> None:
    found = traced("resnet20")
    scores = random_scores(found, seed)
    small = ALLOCATIONS[how](found, Budget.parse(f"{of}={share}"), scores)
    large = ALLOCATIONS[how](found, Budget.parse(f"{of}={share + more}"), scores)
    for name in small:  # but for the unit or two that filled up the smaller budget
        assert (small[name] & ~large[name]).sum() <= 2
    assert sum(counts(large).values()) > sum(counts(small).values())


@given(st.floats(0.1, 0.9), st.integers(0, 1000))
def test_uniform_keeps_the_same_share_up_to_rounding(share: float, seed: int) -> None:
    found = traced("resnet20")
    choice = uniform_choice(found, Budget.parse(f"macs={share}"), random_scores(found, seed))
    shares = [keep.mean() for keep in choice.values()]
    narrowest = min(g.units for g in found.cuttable)
    assert max(shares) - min(shares) <= 2 / narrowest


def test_ratio_keeps_shares_in_proportion() -> None:
    found = traced("mobilenet_v2")
    wide = [g for g in found.cuttable if g.units >= 64]
    heavy = {g.name for g in wide[::2]}
    weights = {g.name: 1.5 if g.name in heavy else 1.0 for g in found.cuttable}
    choice = ratio_choice(found, Budget.parse("macs=0.3"), random_scores(found, 0), weights)
    common = [choice[g.name].mean() / weights[g.name] for g in wide]
    # Rounding is half a unit, and the last units fill up the budget.
    assert max(common) - min(common) <= 3 / min(g.units for g in wide)
    assert max(common) < 1 / 1.5  # so that no group was whole


def test_global_takes_from_the_weak_layer_where_uniform_takes_from_both() -> None:
    # Parameters of 2-a-b-2 without biases are 2a + ab + 2b: 32 dense, so 16 are allowed.
    found, budget = traced_mlp(), Budget.parse("params=0.5")
    first, second = (g.name for g in found.cuttable)
    scores = {first: np.array([9.0, 8.0, 7.0, 6.0]), second: np.array([1.0, 4.0, 2.0, 3.0])}
    even = uniform_choice(found, budget, scores)
    assert counts(even) == {first: 3, second: 2}  # 2, 2 cost 12; 3, 2 cost 16; 3, 3 cost 21
    assert even[second].tolist() == [False, True, False, True]
    uneven = global_choice(found, budget, scores)
    assert counts(uneven) == {first: 4, second: 1}  # 4, 1 cost 14; 4, 2 cost 20


def test_global_leaves_every_group_its_least_share() -> None:
    found, budget = traced_mlp(), Budget.parse("params=0.5")
    first, second = (g.name for g in found.cuttable)
    scores = {first: np.array([9.0, 8.0, 7.0, 6.0]), second: np.array([1.0, 4.0, 2.0, 3.0])}
    kept = global_choice(found, budget, scores, least_share=0.5)
    assert counts(kept) == {first: 3, second: 2}
    with pytest.raises(BudgetError, match=r"params=0\.5 allows 16, but at least 21 .*least_share"):
        global_choice(found, budget, scores, least_share=0.75)


@pytest.mark.parametrize(
    ("share", "units", "least"), [(0.07, 100, 7), (0.28, 25, 7), (0.14, 50, 7), (0.141, 50, 8)]
)
def test_a_least_share_is_taken_as_it_is_written(share: float, units: int, least: int) -> None:
    # Products of the floats are a little above 7. Of 2-a-b-2 the first group is the worst.
    found = trace(mlp((2, units, units, 2)), torch.randn(2, 2))
    first, second = (g.name for g in found.cuttable)
    scores = {first: np.zeros(units), second: np.ones(units)}
    # As many parameters as the least of the first leaves, with the second whole.
    budget = Budget(quantity="params", value=2 * least + least * units + 2 * units)
    kept = global_choice(found, budget, scores, least_share=share)
    assert counts(kept) == {first: least, second: units}


@pytest.mark.parametrize("how", sorted(ALLOCATIONS))
def test_the_least_reachable_value_is_named_and_reachable(how: str) -> None:
    found = traced_mlp()
    scores = random_scores(found, 0)
    with pytest.raises(BudgetError, match=r"params=4 allows 4, but at least 5 remain"):
        ALLOCATIONS[how](found, Budget(quantity="params", value=4), scores)
    kept = ALLOCATIONS[how](found, Budget(quantity="params", value=5), scores)
    assert set(counts(kept).values()) == {1}  # 2 + 1 + 2


@pytest.mark.parametrize("how", sorted(ALLOCATIONS))
@pytest.mark.parametrize("target", ["macs=1", "params=1e12"])
def test_a_loose_budget_keeps_everything(how: str, target: str) -> None:
    found = traced("digits_cnn", 1, 5)
    choice = ALLOCATIONS[how](found, Budget.parse(target), random_scores(found, 0))
    assert all(keep.all() for keep in choice.values())


def test_unusable_scores_and_settings_are_refused() -> None:
    found, budget = traced_mlp(), Budget.parse("params=0.5")
    first, second = (g.name for g in found.cuttable)
    good = {first: np.ones(4), second: np.ones(4)}
    with pytest.raises(InputError, match=f"'{second}' must be 4 finite numbers"):
        uniform_choice(found, budget, {first: np.ones(4)})
    with pytest.raises(InputError, match="not finite"):
        global_choice(found, budget, {**good, first: np.array([1, np.nan, 1, 1])})
    with pytest.raises(InputError, match="least_share is 2"):
        global_choice(found, budget, good, least_share=2)
    with pytest.raises(InputError, match=f"weight of group '{first}' is 0"):
        ratio_choice(found, budget, good, {first: 0.0, second: 1.0})


@given(quantity, st.floats(0.3, 0.9))
def test_units_of_equal_scores_leave_every_group_alike(of: str, share: float) -> None:
    """By order of the network the last groups would be stripped, the first ones left whole."""
    found = traced("resnet20")
    equal = {g.name: np.ones(g.units) for g in found.cuttable}
    shares = [k.mean() for k in global_choice(found, Budget.parse(f"{of}={share}"), equal).values()]
    assert max(shares) - min(shares) <= 2 / min(g.units for g in found.cuttable)


def test_ties_go_by_rank_in_the_group_over_its_size() -> None:
    # 2-a-b-2 has 2a + ab + 2b parameters; 2, 2 cost 12 and 3, 2 cost 16.
    found, budget = traced_mlp(), Budget.parse("params=0.5")
    first, second = (g.name for g in found.cuttable)
    assert counts(global_choice(found, budget, {first: np.ones(4), second: np.ones(4)})) == {
        first: 3,
        second: 2,
    }
    # The two worst of equal scores come after what is better, in both groups.
    best = {first: np.array([1.0, 2.0, 1.0, 2.0]), second: np.array([2.0, 1.0, 1.0, 2.0])}
    kept = global_choice(found, budget, best)
    assert kept[first].tolist() == [True, True, False, True]
    assert kept[second].tolist() == [True, False, False, True]
