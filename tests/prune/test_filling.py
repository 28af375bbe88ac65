"""What a budget has left where connections are few: filled, or told."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.graph import Trace, trace
from prunus.method import TOLERANCE, Budget, Quantity
from prunus.plan import BoolArray
from prunus.prune.chromosome import Chromosome, Encoding
from prunus.prune.filling import Filling
from prunus.prune.genetic_options import GeneticOptions
from prunus.prune.proposals import Proposals
from tests.helpers import Wired, images
from tests.prune.genes import with_genes

MODES = st.sampled_from(["guided", "paper", "front"])
QUANTITIES: list[Quantity] = ["macs", "params", "size"]


class Residual(nn.Module):
    """Few channels: what one neuron costs is much of the budget, and depends on its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.c, self.d = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.e, self.f, self.g = nn.Conv2d(8, 12, 1), nn.Linear(12, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x)).relu()
        x = x + self.e(self.d(self.c(x)).relu())
        out: Tensor = self.g(self.f(x.mean((2, 3))).relu())
        return out


@cache
def network() -> nn.Module:
    return Residual().eval()


@cache
def traced(step: int = 1) -> Trace:
    return trace(network(), images(2, 1, 8, 8), round_to=step)


def proposals(mode: str, connections: float, seed: int = 0, step: int = 1) -> Proposals:
    options = {"mode": mode, "connections": connections, "sampling": "uniform"}
    return Proposals(
        encoding=Encoding(network(), traced(step)),
        trace=traced(step),
        options=GeneticOptions.model_validate(options).settled(),
        scores=None,
        generator=np.random.default_rng(seed),
    )


def cost(made: Proposals, budget: Budget, one: Chromosome) -> int:
    return budget.measure(made.trace, made.encoding.active(one))


def wider(keep: BoolArray, unit: int) -> BoolArray:
    more = keep.copy()
    more[unit] = True
    return more


@given(MODES, st.sampled_from([0.15, 0.3, 0.5]), st.sampled_from(QUANTITIES), st.integers(0, 10**6))
def test_no_neuron_that_would_count_still_fits(
    mode: str, connections: float, quantity: Quantity, seed: int
) -> None:
    """Each gene alone, whichever its rank: it costs nothing, or more than is left."""
    made, budget = proposals(mode, connections, seed), Budget(quantity=quantity, value=0.4)
    limit = budget.limit(budget.measure(made.trace, {}))
    people = [made.initial(budget, number) for number in range(3)]
    people.append(made.child(people[0], people[1], budget))
    for one in people:
        used = cost(made, budget, one)
        assert used <= limit
        if used >= (1 - TOLERANCE) * limit:
            continue
        for name, keep in made.encoding.neurons(one).items():
            for unit in np.flatnonzero(~keep):
                more = made.encoding.with_neurons(one, {name: wider(keep, int(unit))})
                assert not used < cost(made, budget, more) <= limit, (name, unit)


@given(MODES, st.sampled_from([0.08, 0.15, 0.3]), st.sampled_from([4, 5]), st.integers(0, 10**6))
def test_widths_stay_legal(mode: str, connections: float, step: int, seed: int) -> None:
    """By fives, 12 units are 5, 10 or all: the last step is a short one."""
    made, budget = proposals(mode, connections, seed, step), Budget.parse("macs=0.7")
    limit = budget.limit(made.trace.macs({}))
    one = made.initial(budget, 0)
    choice = made.encoding.candidate(one).choice
    made.trace.check(choice)
    assert made.trace.macs(choice) <= limit


def test_neurons_that_live_only_together_are_added_together() -> None:
    """One kernel in, one out: conv a's unit 0 and conv c's unit 0 are of no use without each other."""
    made, budget = proposals("paper", 0.5), Budget.parse("macs=0.9")
    full = made.encoding.full()
    off = {n: np.zeros(k.size, bool) for n, k in made.encoding.neurons(full).items()}
    chain = tuple(
        type(layer)(layer.neurons, {n: _diagonal(k.shape) for n, k in layer.connections.items()})
        for layer in full
    )
    start = made.encoding.with_neurons(chain, {n: wider(k, 0) for n, k in off.items()})
    filled = made._topped_up(start, budget, made._order())
    alive = {n: int(k.sum()) for n, k in made.encoding.candidate(filled).choice.items()}
    whole = made.encoding.candidate(chain).choice
    assert cost(made, budget, chain) < budget.limit(made.trace.macs({}))  # so all of them fit
    assert alive == {n: int(k.sum()) for n, k in whole.items()}


def test_what_only_held_a_place_leaves_its_room_to_neurons_that_count() -> None:
    """Unit 0 of both convolutions is without connections, and stays while its layer has no other.

    Parameters by hand: 2 a + b (a + 1) + 2 b + 2 of a and b channels. Of 16, two each take all, and of
    them one each is alive; one and two, all alive, take 12.
    """
    layers = nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3, 2)).eval()
    found = trace(network, images(2, 1, 8, 8))
    encoding, budget = Encoding(network, found), Budget(quantity="params", value=16)
    into_a, into_b = (
        np.array([[False], [True]]),
        np.array([[True, False], [False, True], [False, True]]),
    )
    first, second, last = encoding.full()
    genes = (
        type(first)(first.neurons, {"0.weight": into_a}),
        type(second)(second.neurons, {"2.weight": into_b}),
        last,
    )
    place = {"0": np.array([True, False]), "2": np.array([True, False, False])}
    ranks = {"0": np.array([2.0, 1.0]), "2": np.array([3.0, 2.0, 1.0])}
    filled = Filling(encoding, found, budget, genes).fill(place, ranks)
    assert {name: keep.tolist() for name, keep in filled.items()} == {
        "0": [False, True],
        "2": [False, True, True],
    }
    assert budget.measure(found, filled) == 12


def test_a_chain_that_fits_is_found_behind_one_that_costs_too_much() -> None:
    """Unit 1 of ``stem`` gives life to unit 1 of ``cheap``, of ``dear``, or of both; all need it.

    Parameters by hand: 2 a + b (a + 1) + c (a + 1) + b + 1 + 10 c + 10 of a, b and c units. One each takes
    28, one more of each 49; of ``stem`` and ``dear`` 45, and of ``stem`` and ``cheap`` 36.
    """

    def wiring(n: Any, x: Tensor) -> Tensor:
        stem = n.stem(x).relu()
        narrow, wide = (side(stem).relu().mean((2, 3)) for side in (n.cheap, n.dear))
        return torch.cat([n.one(narrow), n.ten(wide)], dim=1)

    sides = {"stem": nn.Conv2d(1, 2, 1), "cheap": nn.Conv2d(2, 4, 1), "dear": nn.Conv2d(2, 3, 1)}
    network = Wired(wiring, **sides, one=nn.Linear(4, 1), ten=nn.Linear(3, 10)).eval()
    found = trace(network, images(2, 1, 8, 8))
    encoding, budget = Encoding(network, found), Budget(quantity="params", value=40)
    genes = encoding.full()
    for side, units in (("cheap", 4), ("dear", 3)):
        locus = next(k for k, layer in enumerate(genes) if f"{side}.weight" in layer.connections)
        genes = with_genes(genes, locus, **{side: np.eye(units, 2, dtype=bool)})
    place = {name: np.arange(sides[name].out_channels) == 0 for name in sides}
    ranks = {name: np.arange(keep.size, 0, -1.0) for name, keep in place.items()}
    assert budget.measure(found, place) == 28
    filled = Filling(encoding, found, budget, genes).fill(place, ranks)
    assert {name: int(keep.sum()) for name, keep in filled.items()} == {
        "stem": 2,
        "cheap": 2,
        "dear": 1,
    }
    assert budget.measure(found, filled) == 36


def _diagonal(shape: tuple[int, ...]) -> BoolArray:
    rows, columns = np.indices(shape)
    return np.asarray(rows == columns, dtype=bool)


@given(MODES, st.integers(0, 10**6))
@settings(max_examples=30)
def test_what_stays_unused_for_want_of_connections_is_told(mode: str, seed: int) -> None:
    """A note if and only if more than the tolerance is left and a unit by itself would fit."""
    made, budget = proposals(mode, 0.08, seed), Budget.parse("macs=0.4")
    one, limit = made.initial(budget, 0), budget.limit(made.trace.macs({}))
    whole, used = made.encoding.active(one), cost(made, budget, one)
    fitting = [
        name
        for name, keep in whole.items()
        if not keep.all()
        and made.trace.macs({**whole, name: wider(keep, int(np.flatnonzero(~keep)[0]))}) <= limit
    ]
    notes = made.shortfall(one, budget)
    assert len(notes) == (used < (1 - TOLERANCE) * limit and bool(fitting))
    for note in notes:
        assert f"{used} of {limit} macs are used ({used / limit:.1%})" in note
        assert "raise connections=0.08" in note
        assert "\n" not in note


def test_one_kernel_into_a_layer_leaves_most_of_the_budget_and_says_so() -> None:
    """At 0.08, one of the 12 kernels of conv a stays, and with it one of the units that it leads to."""
    made, budget = proposals("guided", 0.08), Budget.parse("params=0.5")
    assert "raise connections" in made.shortfall(made.initial(budget, 0), budget)[0]


def test_nothing_is_told_where_the_budget_is_used_or_one_unit_would_exceed_it() -> None:
    made, budget = proposals("guided", 1.0), Budget.parse("macs=0.4")
    assert made.shortfall(made.initial(budget, 0), budget) == ()


@pytest.mark.parametrize("mode", ["guided", "front"])
def test_connections_are_spread_so_that_few_neurons_are_lost(mode: str) -> None:
    """20 of 8 x 12 connections are enough for all 12 columns and all 8 rows."""
    made = proposals(mode, 0.2)
    for _ in range(20):
        kept = made._some((8, 12), 20)
        assert int(kept.sum()) == 20
        assert kept.any(0).all() and kept.any(1).all()
        assert int(made._some((8, 12), 5).sum()) == 5


def test_in_the_papers_mode_connections_are_any() -> None:
    made = proposals("paper", 0.2)
    drawn = [made._some((8, 12), 20) for _ in range(50)]
    assert {int(kept.sum()) for kept in drawn} == {20}
    assert not all(kept.any(0).all() for kept in drawn)
