"""Crossover, mutation, sampling, selection: against counts by hand and the laws they promise."""

import itertools
from collections import Counter
from collections.abc import Callable, Hashable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prunus.search import Individual, best_distinct, break_point, gumbel_ranks, swap, uniform

LEAST_P = 1e-4
"""Of a test of frequencies: a true law fails it once in ten thousand seeds, and the seed is fixed."""


def follows(law: dict[Hashable, float], draw: Callable[[], Hashable], draws: int) -> bool:
    """Whether ``draws`` outcomes of ``draw`` have the frequencies of ``law`` (chi-square)."""
    assert sum(law.values()) == pytest.approx(1)
    seen = Counter(draw() for _ in range(draws))
    assert set(seen) <= set(law)
    observed = [seen[outcome] for outcome in law]
    expected = [draws * chance for chance in law.values()]
    return bool(stats.chisquare(observed, expected).pvalue > LEAST_P)


# Crossover


@pytest.mark.parametrize("hundredths", range(101))
def test_break_point_takes_every_locus_that_begins_before_the_point(hundredths: int) -> None:
    """Locus i of L (from 0) is the first parent's where i < p * L, in whole numbers: 100 i < h L."""
    for length in range(61):
        a, b = list(range(length)), list(range(100, 100 + length))
        expected = tuple(a[i] if 100 * i < hundredths * length else b[i] for i in range(length))
        assert break_point(a, b, hundredths / 100) == expected


@pytest.mark.parametrize(
    ("length", "point", "first"),
    [
        (5, 0.6, 3),
        (16, 0.6, 10),  # VGG16 of the paper with a head: 9.6
        (25, 0.28, 7),  # 7.000000000000001 in floating point
        (50, 0.14, 7),  # the same
        (3, 1 / 3, 1),
        (7, 0.0, 0),
        (7, 1.0, 7),
        (1, 0.01, 1),
    ],
)
def test_break_point_by_hand(length: int, point: float, first: int) -> None:
    assert break_point("a" * length, "b" * length, point) == (
        *("a" * first),
        *("b" * (length - first)),
    )


def test_uniform_tosses_a_fair_coin_of_its_own_for_every_locus() -> None:
    generator = np.random.default_rng(0)
    law: dict[Hashable, float] = dict.fromkeys(itertools.product("ab", repeat=3), 1 / 8)
    assert follows(law, lambda: uniform("aaa", "bbb", generator), 4000)


@given(st.lists(st.tuples(st.integers(), st.integers()), max_size=30), st.integers(0, 99))
def test_uniform_leaves_every_locus_where_it_was(pairs: list[tuple[int, int]], seed: int) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    child = uniform(a, b, np.random.default_rng(seed))
    assert len(child) == len(pairs)
    assert all(gene in pair for gene, pair in zip(child, pairs, strict=True))
    assert child == uniform(a, b, np.random.default_rng(seed))


def test_uniform_refuses_parents_of_two_lengths() -> None:
    with pytest.raises(ValueError, match="shorter"):
        uniform("aaa", "bb", np.random.default_rng(0))


# Mutation


@given(
    st.lists(st.booleans(), max_size=24),
    st.integers(0, 30),
    st.booleans(),
    st.integers(0, 999),
)
def test_swap_moves_as_many_in_as_out(
    row: list[bool], count: int, weighted: bool, seed: int
) -> None:
    bits = np.array(row, dtype=bool)
    before = bits.copy()
    weights = np.random.default_rng(seed).uniform(0.01, 9, bits.shape) if weighted else None
    found = swap(bits, count, np.random.default_rng(seed), weights)
    moved = min(count, int(before.sum()), int((~before).sum()))
    assert np.array_equal(bits, before)
    assert not np.shares_memory(found, bits)
    assert found.dtype == np.bool_
    assert int((before & ~found).sum()) == moved
    assert int((~before & found).sum()) == moved
    assert np.array_equal(found, swap(bits, count, np.random.default_rng(seed), weights))


def test_swap_keeps_the_shape_and_reads_weights_by_place() -> None:
    """Weights so far apart that only one swap is likely: the heaviest clear for the lightest set."""
    bits = np.array([[True, True, False], [False, False, True]])
    weights = np.array([[1.0, 1e-12, 1e-12], [1e-12, 1.0, 1.0]])
    for layout in (np.ascontiguousarray, np.asfortranarray):
        found = swap(layout(bits), 1, np.random.default_rng(0), layout(weights))
        assert found.tolist() == [[True, False, False], [False, True, True]]


def test_swap_without_weights_is_fair() -> None:
    """Two of four set bits leave: 6 pairs alike; two of three clear ones enter: 3 pairs alike."""
    bits = np.array([True] * 4 + [False] * 3)
    left: dict[Hashable, float] = {
        (*out, *came): 1 / 18
        for out in itertools.combinations(range(4), 2)
        for came in itertools.combinations(range(4, 7), 2)
    }
    generator = np.random.default_rng(1)

    def changed() -> Hashable:
        return tuple(np.flatnonzero(bits ^ swap(bits, 2, generator)).tolist())

    assert follows(left, changed, 4000)


def test_swap_sets_by_weight_and_clears_by_its_inverse() -> None:
    """Clear bits of weights 1, 2, 5; set bits of 1, 2, 4, whose inverses are as 4 : 2 : 1."""
    bits = np.array([True, True, True, False, False, False])
    weights = np.array([1.0, 2.0, 4.0, 1.0, 2.0, 5.0])
    clear = {0: 4 / 7, 1: 2 / 7, 2: 1 / 7}
    enter = {3: 1 / 8, 4: 2 / 8, 5: 5 / 8}
    law: dict[Hashable, float] = {
        (i, j): p * q for (i, p), (j, q) in itertools.product(clear.items(), enter.items())
    }
    generator = np.random.default_rng(2)

    def changed() -> Hashable:
        return tuple(np.flatnonzero(bits ^ swap(bits, 1, generator, weights)).tolist())

    assert follows(law, changed, 6000)


# Sampling

WEIGHTS = (1.0, 2.0, 3.0, 4.0)


def first_two(weights: tuple[float, ...], temperature: float, generator: np.random.Generator):
    ranks = gumbel_ranks(np.array(weights), temperature, generator)
    return tuple(np.argsort(-ranks)[:2].tolist())


def plackett_luce(weights: tuple[float, ...]) -> dict[Hashable, float]:
    """Chances of the first two drawn one after the other, in proportion to what is left."""
    total = sum(weights)
    return {
        (i, j): weights[i] / total * weights[j] / (total - weights[i])
        for i, j in itertools.permutations(range(len(weights)), 2)
    }


def test_gumbel_ranks_at_temperature_1_draw_one_after_the_other() -> None:
    generator = np.random.default_rng(3)
    first: dict[Hashable, float] = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}
    assert follows(first, lambda: first_two(WEIGHTS, 1, generator)[0], 4000)
    assert follows(plackett_luce(WEIGHTS), lambda: first_two(WEIGHTS, 1, generator), 6000)


def test_gumbel_ranks_at_high_temperature_draw_anyone() -> None:
    generator = np.random.default_rng(4)
    law = plackett_luce((1.0, 1.0, 1.0, 1.0))
    assert follows(law, lambda: first_two(WEIGHTS, 1e6, generator), 4000)


def test_gumbel_ranks_do_not_see_the_unit_of_the_weights() -> None:
    a = gumbel_ranks(np.array(WEIGHTS), 0.7, np.random.default_rng(5))
    b = gumbel_ranks(1e-30 * np.array(WEIGHTS), 0.7, np.random.default_rng(5))
    assert b - a == pytest.approx(np.full(4, np.log(1e-30)))


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-300, 1e300)), min_size=1, max_size=30),
    st.one_of(st.just(0.0), st.floats(1e-3, 1e6)),
    st.integers(0, 999),
)
def test_gumbel_ranks_put_weight_0_last(row: list[float], temperature: float, seed: int) -> None:
    weights = np.array(row)
    ranks = gumbel_ranks(weights, temperature, np.random.default_rng(seed))
    assert ranks.shape == weights.shape
    assert np.isfinite(ranks).all()
    positive = int((weights > 0).sum())
    order = np.argsort(-ranks)
    assert (weights[order[:positive]] > 0).all()
    assert ranks[weights == 0].max(initial=-np.inf) < ranks[weights > 0].min(initial=np.inf)
    if temperature == 0:
        heaviest = np.sort(weights)[::-1]
        for k in range(1, positive + 1):
            assert sorted(weights[order[:k]], reverse=True) == pytest.approx(
                heaviest[:k], rel=1e-12
            )


def test_gumbel_ranks_order_weights_of_0_by_chance() -> None:
    generator = np.random.default_rng(6)
    law = plackett_luce((1.0, 1.0, 1.0))
    assert follows(law, lambda: first_two((0.0, 0.0, 0.0), 0, generator), 2000)


# Selection


def people(rows: list[tuple[float, str]]) -> list[Individual[int]]:
    return [Individual(k, (score, 0.0), key) for k, (score, key) in enumerate(rows)]


SCORES = st.lists(
    st.tuples(st.sampled_from([-1.0, 0.0, 1.0, 2.0, np.inf]), st.sampled_from("abcdef")),
    max_size=20,
)


@given(SCORES, st.integers(0, 8))
def test_best_distinct_is_the_least_score_of_every_key(
    rows: list[tuple[float, str]], count: int
) -> None:
    least = {key: min(s for s, k in rows if k == key) for _, key in rows}
    expected = sorted((score, key) for key, score in least.items())[:count]
    found = best_distinct(people(rows), count)
    assert [(one.values[0], one.key) for one in found] == expected


def test_best_distinct_of_copies_alike_keeps_the_first() -> None:
    """Who was there before stays: the genome of an elite does not drift through its copies."""
    found = best_distinct(people([(1.0, "a"), (1.0, "a"), (0.5, "b"), (0.5, "b")]), 5)
    assert [one.genome for one in found] == [2, 0]


def test_best_distinct_takes_what_can_be_read_once() -> None:
    found = best_distinct(iter(people([(3.0, "c"), (1.0, "z"), (1.0, "y")])), 2)
    assert [one.key for one in found] == ["y", "z"]
