"""Chromosomes on a budget: what the first population is, and what parents hand down."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunus.graph import Choice, Trace, cut, hold_connections_, trace
from prunus.graph.connections import register_held
from prunus.method import TOLERANCE, Budget, Context, Quantity
from prunus.plan import BoolArray
from prunus.prune import MagnitudeWeights, global_choice, uniform_choice
from prunus.prune.chromosome import Chromosome, Encoding
from prunus.prune.genetic_options import GeneticOptions
from prunus.prune.magnitude import magnitude_scores
from prunus.prune.proposals import Proposals
from prunus.prune.scores import FloatArray, normalized
from prunus.zoo import build
from tests.helpers import images
from tests.prune.networks import mlp

SEEDS = st.integers(0, 10**6)
HALF = Budget.parse("macs=0.5")
QUANTITIES: tuple[Quantity, ...] = ("macs", "params", "size")


@cache
def network() -> nn.Module:
    return build("digits_cnn").eval()


@cache
def traced(step: int = 1) -> Trace:
    return trace(network(), images(2, 1, 8, 8), min_units=step, round_to=step)


@cache
def importance() -> dict[str, FloatArray]:
    return magnitude_scores(network(), traced(), norm="l2", axes="out")


def proposals(seed: int = 0, step: int = 1, mode: str = "guided", **options: object) -> Proposals:
    settled = GeneticOptions.model_validate({"mode": mode, **options}).settled()
    return Proposals(
        encoding=Encoding(network(), traced(step)),
        trace=traced(step),
        options=settled,
        scores=importance() if settled.sampling == "importance" else None,
        generator=np.random.default_rng(seed),
    )


def require_exact(budget: Budget, choice: Choice, step: int = 1) -> None:
    """Within the limit, and one step more in any group would be beyond it."""
    found = traced(step)
    limit = budget.limit(budget.measure(found, {}))
    assert budget.measure(found, choice) <= limit
    for name, keep in choice.items():
        wider = keep.copy()
        wider[np.flatnonzero(~keep)[:step]] = True
        assert keep.all() or budget.measure(found, {**choice, name: wider}) > limit, name


def counts(chromosome: Chromosome) -> tuple[list[int], list[int]]:
    """Neurons kept by layer, connections kept by weight."""
    neurons = [int(layer.neurons.sum()) for layer in chromosome]
    return neurons, [int(g.sum()) for layer in chromosome for g in layer.connections.values()]


def rows(chromosome: Chromosome) -> list[list[BoolArray]]:
    return [[layer.neurons, *layer.connections.values()] for layer in chromosome]


def same(a: list[BoolArray], b: list[BoolArray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def one_width(made: Proposals, seed: int) -> Chromosome:
    """Random genes, the neurons of every layer as many as those of any other such chromosome."""
    rng = np.random.default_rng(seed)
    scores = {g.name: rng.random(g.units) for g in made.trace.cuttable}
    choice = uniform_choice(made.trace, HALF, scores)
    return made.encoding.with_neurons(made.initial(HALF, 9), choice)


def twins(made: Proposals, number: int) -> Chromosome:
    """A child whose parents are one chromosome."""
    parent = made.initial(HALF, number)
    return made.child(parent, parent, HALF)


# -- the budget -----------------------------------------------------------------------------------


@given(
    SEEDS,
    st.sampled_from(["guided", "paper"]),
    st.sampled_from(QUANTITIES),
    st.floats(0.25, 0.95),
    st.sampled_from([1, 4]),
)
@settings(max_examples=15)
def test_first_population_and_descendants_cost_what_is_allowed(
    seed: int, mode: str, quantity: Quantity, share: float, step: int
) -> None:
    made = proposals(seed, step, mode, connections=0.7, mutation=0.8, swaps=0.2)
    budget = Budget(quantity=quantity, value=share)
    people = [made.initial(budget, number) for number in range(3)]
    for _ in range(3):
        people.append(made.child(people[-1], people[-2], budget))
    limit = budget.limit(budget.measure(traced(step), {}))
    for one in people:
        choice = made.encoding.candidate(one).choice  # less neurons without a connection
        assert all(int(k.sum()) >= step for k in choice.values())
        assert all(int(k.sum()) % step == 0 or k.all() for k in choice.values())
        assert budget.measure(traced(step), choice) <= limit
        if budget.measure(traced(step), choice) < (1 - TOLERANCE) * limit:
            require_exact(budget, choice, step)


@given(SEEDS, st.sampled_from(["guided", "paper"]), st.floats(0.05, 1.0))
@settings(max_examples=15)
def test_share_of_connections_is_the_same_in_every_weight_and_handed_down(
    seed: int, mode: str, share: float
) -> None:
    made = proposals(seed, mode=mode, connections=share, mutation=1.0, swaps=0.2)
    people = [made.initial(HALF, number) for number in range(2)]
    people += [made.child(people[0], people[1], HALF) for _ in range(2)]
    sizes = [g.size for layer in made.encoding.full() for g in layer.connections.values()]
    for one in people:
        assert counts(one)[1] == [max(1, round(share * size)) for size in sizes]


def sparse(network: nn.Module, sparsity: float) -> nn.Module:
    """Every layer but the last with its smallest weights held at zero."""
    found = trace(network, torch.randn(2, 16))
    given = Context(network, found, Budget.parse("params=1"), seed=0)
    decision = MagnitudeWeights(sparsity=sparsity, scope="layer").decide(given)
    return cut(network, found.plan({}, decision.connections)).eval()


def proposals_on(network: nn.Module, mode: str, **options: object) -> Proposals:
    found = trace(network, torch.randn(2, 16))
    settled = GeneticOptions.model_validate({"mode": mode, **options}).settled()
    norms = magnitude_scores(network, found, norm="l2", axes="out")
    return Proposals(
        encoding=Encoding(network, found),
        trace=found,
        options=settled,
        scores=norms if settled.sampling == "importance" else None,
        generator=np.random.default_rng(0),
    )


@pytest.mark.parametrize("target", ["params=0.3", "macs=0.3", "params=0.6"])
@pytest.mark.parametrize("mode", ["guided", "paper", "front"])
def test_zeros_of_earlier_rounds_leave_nothing_of_the_budget_unused(mode: str, target: str) -> None:
    """Neurons that they leave without connections cost nothing: others get what these leave."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = proposals_on(sparse(mlp((16, 64, 64, 64, 3)), 0.9), mode)
    budget = Budget.parse(target)
    people = [made.initial(budget, number) for number in range(4)]
    for _ in range(4):
        people.append(made.child(people[-1], people[-2], budget))
    limit = budget.limit(budget.measure(made.trace, {}))
    for one in people:
        choice = made.encoding.active(one)
        cost = budget.measure(made.trace, choice)
        assert cost <= limit
        assert cost >= (1 - TOLERANCE) * limit or not budget.has_room(made.trace, choice)


@pytest.mark.parametrize(
    ("share", "way_on"),
    [
        (1.0, "; let earlier rounds hold fewer at zero to use more"),
        (0.5, "; raise connections=0.5 or let earlier rounds hold fewer at zero to use more"),
    ],
)
def test_a_budget_that_earlier_zeros_leave_unused_is_told(share: float, way_on: str) -> None:
    """Of the first layer's units one has inputs: the others cost nothing, whatever the target."""
    network = mlp((16, 64, 64, 64, 3))
    mask = torch.zeros(64, 16, dtype=torch.bool)
    mask[0] = True
    register_held(network.get_submodule("0"), "weight", mask)
    hold_connections_(network)
    made, budget = proposals_on(network, "guided", connections=share), Budget.parse("params=0.9")
    (note,) = made.shortfall(made.initial(budget, 0), budget)
    assert note.endswith(
        f"no other units were found that fit and have connections to active ones{way_on}"
    )
    assert "connections=1" not in note


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_budget_that_some_network_meets_is_met_by_all(number: int) -> None:
    budget = Budget.parse("params=0.02")
    made = proposals()
    require_exact(budget, made.encoding.neurons(made.initial(budget, number)))


def test_group_that_must_shrink_loses_its_least_important_units() -> None:
    made, quarter = proposals(mutation=0), Budget.parse("macs=0.25")
    order = {name: np.argsort(-scores) for name, scores in importance().items()}
    neurons = {name: np.arange(k.size) % 4 > 0 for name, k in order.items()}
    after = made.to_budget(neurons, quarter)
    require_exact(quarter, after)
    assert any(kept.sum() < neurons[name].sum() for name, kept in after.items())
    for name, kept in after.items():
        # what the budget has left may widen a cheap group: by the best of those it had not
        rank = sorted(order[name].tolist(), key=lambda unit: not neurons[name][unit])
        assert np.flatnonzero(kept).tolist() == sorted(rank[: int(kept.sum())])


def test_group_that_may_grow_gets_the_most_important_units_back() -> None:
    made = proposals(mutation=0)
    order = {name: np.argsort(-scores) for name, scores in importance().items()}
    worst = {name: np.isin(np.arange(k.size), k[-4:]) for name, k in order.items()}
    after = made.to_budget(worst, HALF)
    require_exact(HALF, after)
    for name, kept in after.items():
        expected = np.union1d(order[name][-4:], order[name][: int(kept.sum()) - 4])
        assert np.flatnonzero(kept).tolist() == expected.tolist()


# -- the first population -------------------------------------------------------------------------


def test_with_importance_the_first_two_are_the_rankings() -> None:
    made = proposals()
    expected = [
        uniform_choice(traced(), HALF, importance()),
        global_choice(traced(), HALF, normalized(importance(), "mean")),
    ]
    for number, choice in enumerate(expected):
        found = made.encoding.neurons(made.initial(HALF, number))
        assert all((found[name] == keep).all() for name, keep in choice.items())
    assert any((expected[0][name] != expected[1][name]).any() for name in expected[0])


def test_cold_sampling_takes_the_most_important_units_in_random_shares() -> None:
    cold = proposals(temperature=0, jitter=0.5)
    widths = set()
    for number in range(2, 8):
        choice = cold.encoding.neurons(cold.initial(HALF, number))
        for name, keep in choice.items():
            best = np.sort(np.argsort(-importance()[name])[: int(keep.sum())])
            assert np.flatnonzero(keep).tolist() == best.tolist()
        widths.add(tuple(int(keep.sum()) for keep in choice.values()))
    assert len(widths) > 3


def test_without_jitter_sampled_shares_are_the_uniform_ones() -> None:
    even = proposals(temperature=0, jitter=1e-4)
    uniform = counts(even.initial(HALF, 0))[0]
    for number in range(2, 8):  # what the budget has left may go to another group
        widths = counts(even.initial(HALF, number))[0]
        assert max(abs(a - b) for a, b in zip(widths, uniform, strict=True)) <= 1


def test_warm_sampling_prefers_important_units_and_hot_sampling_does_not() -> None:
    """Mean rank of what is kept, 0 the most important, 1 the least: 1/2 where all are alike."""

    def mean_rank(temperature: float) -> float:
        made = proposals(temperature=temperature, jitter=0.01)
        ranks = {n: np.argsort(np.argsort(-s)) / (s.size - 1) for n, s in importance().items()}
        found = [made.encoding.neurons(made.initial(HALF, 2)) for _ in range(8)]
        return float(np.mean([ranks[n][k].mean() for choice in found for n, k in choice.items()]))

    cold, warm, hot = (mean_rank(t) for t in (0.0, 0.2, 100.0))
    assert cold < warm - 0.02
    assert warm < hot - 0.02
    assert hot == pytest.approx(0.5, abs=0.06)


def test_without_importance_units_are_drawn_all_alike() -> None:
    made = proposals(mode="paper")
    kept = [made.encoding.neurons(made.initial(HALF, 0))["conv4"] for _ in range(40)]
    share = np.mean(kept, axis=0)
    assert share.min() > 0.3  # five standard deviations below what is kept of all, 0.7
    assert (share == 1).sum() < 4


# -- breeding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("point", "first"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.6, 3), (1.0, 4)])
def test_layers_up_to_the_break_point_are_one_parents_the_rest_the_others(
    point: float, first: int
) -> None:
    made = proposals(mode="paper", mutation=0, crossover=point)
    a, b = one_width(made, 1), one_width(made, 2)
    assert not any(same(x, y) for x, y in zip(rows(a), rows(b), strict=True))
    child = made.child(a, b, HALF)
    for locus, mine in enumerate(rows(child)):
        assert same(mine, rows(a if locus < first else b)[locus]), locus


@given(SEEDS, st.sampled_from(["guided", "paper", "front"]), st.floats(0, 1))
@settings(max_examples=15)
def test_child_of_one_chromosome_without_mutation_is_the_chromosome(
    seed: int, mode: str, crossover: float
) -> None:
    made = proposals(seed, mode=mode, mutation=0, crossover=crossover)
    parent = made.initial(HALF, 2)
    assert all(map(same, rows(made.child(parent, parent, HALF)), rows(parent)))


@pytest.mark.parametrize(
    ("mode", "mutation", "rate"), [("guided", 0.6, 0.76), ("guided", 0.0, 0.0), ("paper", 0.6, 0.6)]
)
def test_children_are_mutated_at_the_rate_that_the_options_tell(
    mode: str, mutation: float, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At ``crossover=0.6``: 0.6 + (1 - 0.6)(1 - 0.6) = 0.76 where a single parent's child always is."""
    mutated: list[Chromosome] = []

    def noted(_: Proposals, made: Chromosome) -> Chromosome:
        mutated.append(made)
        return made

    monkeypatch.setattr(Proposals, "_mutated", noted)
    monkeypatch.setattr(Proposals, "fitted", lambda _, made, __: made)
    made = proposals(mode=mode, mutation=mutation, crossover=0.6)
    parents = one_width(made, 1), one_width(made, 2)
    for _ in range(2000):
        made.child(*parents, HALF)
    assert len(mutated) / 2000 == pytest.approx(rate, abs=0.05)  # five standard deviations


def test_uniform_mixing_takes_every_layer_from_either_by_a_fair_coin() -> None:
    made = proposals(mode="paper", mixing="uniform", crossover=1.0, mutation=0)
    a, b = one_width(made, 1), one_width(made, 2)
    heads = np.array(
        [
            [same(x, y) for x, y in zip(rows(made.child(a, b, HALF)), rows(a), strict=True)]
            for _ in range(60)
        ]
    )
    tails = ~heads
    assert heads.mean(axis=0) == pytest.approx(0.5, abs=0.2)
    assert (heads[:, 0] & tails[:, 1]).any()
    assert (heads[:, 0] & heads[:, 1]).any()


@pytest.mark.parametrize("crossover", [0.0, 0.4])
def test_uniform_mixing_happens_with_the_probability_of_crossover(crossover: float) -> None:
    made = proposals(mode="paper", mixing="uniform", crossover=crossover, mutation=0)
    a, b = one_width(made, 1), one_width(made, 2)
    children = [made.child(a, b, HALF) for _ in range(80)]
    mixed = [not all(map(same, rows(child), rows(a))) for child in children]
    # a mix of four fair coins is the first parent again once in 16
    assert np.mean(mixed) == pytest.approx(crossover * 15 / 16, abs=0.0 if not crossover else 0.15)


@pytest.mark.parametrize("mode", ["guided", "paper"])
def test_mutation_swaps_a_share_of_the_genes_and_keeps_their_number(mode: str) -> None:
    made = proposals(mode=mode, mutation=1.0, swaps=0.25, moves=0, connections=0.8)
    parent = one_width(made, 1)
    child = made.child(parent, parent, HALF)
    assert counts(child) == counts(parent)
    for mine, theirs in zip(rows(child), rows(parent), strict=True):
        for genes, before in zip(mine, theirs, strict=True):
            exact = 0.25 * int(before.sum())
            swapped = int((genes & ~before).sum())
            most = int((~before).sum())
            assert swapped in {min(most, int(exact)), min(most, int(np.ceil(exact)))}


def test_connections_that_all_stay_are_no_genes_to_swap() -> None:
    made = proposals(mutation=1.0, swaps=0.5)
    child = twins(made, 2)
    assert all(g.all() for layer in child for g in layer.connections.values())


def test_mutation_happens_with_its_probability() -> None:
    made = proposals(mode="paper", mutation=0.6, swaps=0.5)
    parent = one_width(made, 1)
    children = [made.child(parent, parent, HALF) for _ in range(100)]
    changed = [not all(map(same, rows(child), rows(parent))) for child in children]
    assert np.mean(changed) == pytest.approx(0.6, abs=0.15)  # three standard deviations


def test_moves_change_widths_and_swaps_alone_do_not() -> None:
    parent = one_width(proposals(), 1)

    def widths(moves: float) -> set[tuple[int, ...]]:
        made = proposals(mutation=1.0, moves=moves)
        children = [made.child(parent, parent, HALF) for _ in range(12)]
        for child in children:
            require_exact(HALF, made.encoding.neurons(child))
        return {tuple(counts(child)[0]) for child in children}

    assert widths(0.0) == {tuple(counts(parent)[0])}
    assert len(widths(0.5)) > 6


def test_a_move_changes_three_groups_on_average() -> None:
    # Twelve layers of 64 units, half of them kept: a factor of exp(2 z) is almost never 1.
    deep = mlp((8, *[64] * 12, 2))
    found = trace(deep, images(2, 8))
    made = Proposals(
        encoding=Encoding(deep, found),
        trace=found,
        options=GeneticOptions(moves=2.0).settled(),
        scores=None,
        generator=np.random.default_rng(0),
    )
    assert len(found.cuttable) == 12
    half = {g.name: np.arange(g.units) % 2 == 0 for g in found.cuttable}
    parent = made.encoding.with_neurons(made.encoding.full(), half)
    changed = [
        sum(int(layer.neurons.sum()) != 32 for layer in made._moved(parent) if layer.neurons.size)
        for _ in range(100)
    ]
    # Of 100 draws of 12 coins, each 3 of 12 heads: four standard deviations of their mean.
    assert np.mean(changed) == pytest.approx(3, abs=4 * (12 * 0.25 * 0.75 / 100) ** 0.5)


def test_important_neurons_come_in_and_unimportant_ones_go_out() -> None:
    made = proposals(mutation=1.0, swaps=0.04, moves=0)  # at most one swap in a layer
    scores = {g.name: np.where(np.arange(g.units) % 2, 100.0, 1.0) for g in traced().cuttable}
    heavy = Proposals(made.encoding, traced(), made.options, scores, np.random.default_rng(0))
    parent = one_width(made, 1)
    came, went = [], []
    assert {
        k.sum() < k.size and (~k[1::2]).any() for k in heavy.encoding.neurons(parent).values()
    } == {True}
    for _ in range(40):
        child = heavy.child(parent, parent, HALF)
        for name, after in heavy.encoding.neurons(child).items():
            before = heavy.encoding.neurons(parent)[name]
            came += scores[name][after & ~before].tolist()
            went += scores[name][before & ~after].tolist()
    # both kinds are there to come and to go: the odds are 100 to 1 or better for most draws
    assert len(came) == len(went) > 40
    assert np.mean(np.array(came) > 1) > 0.9
    assert np.mean(np.array(went) > 1) < 0.1


def test_draws_are_the_generators_alone() -> None:
    before = torch.get_rng_state(), str(np.random.get_state(legacy=False))  # noqa: NPY002
    first, again, other = (
        [made.initial(HALF, 2), twins(made, 3)]
        for made in (proposals(1), proposals(1), proposals(2))
    )
    assert all(all(map(same, rows(a), rows(b))) for a, b in zip(first, again, strict=True))
    assert not all(map(same, rows(first[0]), rows(other[0])))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state(legacy=False))  # noqa: NPY002
