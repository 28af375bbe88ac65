"""Parts of the images, and who is dropped: by hand, by scipy, and by simulation."""

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prunus.candidates.halving import (
    CONFIDENCE,
    Values,
    fitness,
    lower_bound,
    rung_ends,
    survivors,
)

MANY = 10**12
"""Images of which those seen are next to nothing."""


def bound(differences: Values) -> float:
    return lower_bound(differences, MANY)


# Parts


@pytest.mark.parametrize(
    ("images", "first", "growth", "batch", "expected"),
    [
        (2000, 128, 4.0, 64, (128, 512, 2000)),
        (2000, 100, 4.0, 64, (128, 512, 2000)),  # whole batches
        (10000, 128, 4.0, 64, (128, 512, 2048, 10000)),
        (100, 128, 4.0, 64, (100,)),
        (128, 128, 4.0, 64, (128,)),
        (256, 128, 4.0, 64, (256,)),  # the second part would only double the images
        (257, 128, 4.0, 64, (128, 257)),
        (2, 2, 4.0, 1, (2,)),
        (9, 2, 2.0, 1, (2, 4, 9)),
    ],
)
def test_ends_by_hand(
    images: int, first: int, growth: float, batch: int, expected: tuple[int, ...]
) -> None:
    assert rung_ends(images, first, growth, batch) == expected


@given(
    images=st.integers(2, 20_000),
    first=st.integers(2, 3_000),
    growth=st.floats(1.05, 20),
    batch=st.integers(1, 300),
)
def test_ends_are_whole_batches_that_grow_and_end_at_all(
    images: int, first: int, growth: float, batch: int
) -> None:
    ends = rung_ends(images, first, growth, batch)
    assert ends[-1] == images
    assert all(a < b for a, b in pairwise(ends))
    assert all(end % batch == 0 for end in ends[:-1])
    assert all(end >= first for end in ends[:-1])
    # Each part but the last ends at the factor, rounded up to a batch; the last is no small rest.
    for a, b in pairwise(ends[:-1]):
        assert growth * a <= b + 1e-6 < growth * a + batch + 1e-6
    if len(ends) > 1:
        assert images > math.sqrt(growth) * ends[-2]


@pytest.mark.parametrize("batch", [1, 3, 7, 64, 100])
def test_smallest_growth_there_is_comes_to_an_end(batch: int) -> None:
    ends = rung_ends(50 * batch, 2, math.nextafter(1.0, 2.0), batch)
    assert ends[-1] == 50 * batch and len(ends) <= 50


# Bounds


def test_bound_by_hand() -> None:
    """Mean 2; neighbors differ by 2, 2, 4: s^2 = 24 / 6 = 4; t(0.95, 3) = 2.353363 (any table)."""
    sample = np.array([-1.0, 1.0, 3.0, 7.0]) - 0.5
    assert bound(sample) == pytest.approx(2 - 2.353363 * 2 / 2, abs=5e-5)


@given(st.lists(st.floats(-100, 100, allow_nan=False, width=32), min_size=2, max_size=50))
def test_bound_is_the_formula(numbers: list[float]) -> None:
    n = len(numbers)
    squares = sum((numbers[i] - numbers[i - 1]) ** 2 for i in range(1, n))
    error = math.sqrt(squares / (2 * (n - 1)) / n)
    expected = math.fsum(numbers) / n - stats.t.ppf(CONFIDENCE, n - 1) * error
    assert bound(np.array(numbers)) == pytest.approx(expected, abs=6e-5, rel=1e-9)


def test_variance_of_neighbors_is_that_of_the_sample_where_order_says_nothing() -> None:
    """On average over draws: the estimator is unbiased; so the bound fails in about 5 % of draws."""
    rng = np.random.default_rng(0)
    draws = rng.exponential(1.0, (4000, 64)) - 1.0
    failed = np.mean([bound(-draw) > 0 for draw in draws])
    assert 0.03 < failed < 0.09  # a skewed distribution, and fewer degrees of freedom than n - 1
    draws = rng.normal(0.0, 1.0, (4000, 64))
    assert np.mean([bound(draw) > 0 for draw in draws]) == pytest.approx(0.05, abs=0.015)


def test_what_difficulty_explains_does_not_count() -> None:
    """A difference that grows evenly with difficulty from -1 to 1.2: mean 0.1, no noise."""
    difference = np.linspace(-1, 1.2, 64)
    assert bound(difference) > 0.09
    assert bound(np.random.default_rng(0).permutation(difference)) < 0


@given(st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=40), st.integers(0, 100))
def test_what_was_seen_is_certain(numbers: list[float], unseen: int) -> None:
    """Of N images n are seen: the error shrinks by sqrt(1 - n / N), and is none at the end."""
    sample, n = np.array(numbers), len(numbers)
    mean = math.fsum(numbers) / n
    error = (mean - bound(sample)) * math.sqrt(unseen / (n + unseen))
    assert lower_bound(sample, n + unseen) == pytest.approx(mean - error, abs=2e-4)


def test_one_image_tells_nothing() -> None:
    assert bound(np.array([1e9])) == -math.inf


def test_constant_difference() -> None:
    assert bound(np.full(8, 0.25)) == 0.25
    assert bound(np.full(8, 0.00004)) == 0.0  # below what is told apart
    assert bound(np.full(8, -0.25)) == -0.25


def test_fitness_is_the_mean_rounded() -> None:
    assert fitness(np.array([0.1, 0.2, 0.30016], dtype=np.float32)) == 0.2001
    many = np.full(1_000_003, 0.1, dtype=np.float32)  # summed in float32 this would be off
    assert fitness(many) == 0.1


# Who stays


def stay(values: Mapping[str, Values], top: int) -> set[str]:
    """Survivors where the images are in order of difficulty."""
    count = len(next(iter(values.values()), np.empty(0)))
    return survivors(values, top, np.arange(count, dtype=np.float64), MANY)


def rows(**values: list[float]) -> dict[str, Values]:
    return {key: np.array(row, dtype=np.float32) for key, row in values.items()}


def test_survivors_by_hand() -> None:
    """K = 2: the pivot is b; c is above it by a constant, d by noise alone, e on the mean below."""
    values = rows(
        a=[0.0, 0.0, 0.0, 0.0],
        b=[1.0, 1.0, 1.0, 1.0],
        c=[1.1, 1.1, 1.1, 1.1],
        d=[0.0, 9.0, 0.0, 0.0],
    )
    assert stay(values, 2) == {"a", "b", "d"}
    assert stay(values, 1) == {"a", "d"}
    assert stay(values, 3) == {"a", "b", "c", "d"}


def test_fewer_candidates_than_wanted_all_stay() -> None:
    values = rows(a=[0.0, 0.0], b=[5.0, 5.0])
    assert stay(values, 2) == {"a", "b"}
    assert stay(values, 9) == {"a", "b"}
    assert stay({}, 1) == set()


def test_equal_candidates_all_stay() -> None:
    values = {key: np.arange(8, dtype=np.float32) for key in "abcdef"}
    assert stay(values, 1) == set("abcdef")


def test_broken_candidate_is_dropped_and_a_broken_image_alone_decides_nothing() -> None:
    rng = np.random.default_rng(0)
    good = {f"good{k}": rng.random(128).astype(np.float32) for k in range(3)}
    one = good["good0"].copy()
    one[5] = 1e4
    values = good | {"broken": np.full(128, 1e4, dtype=np.float32), "one": one}
    left = stay(values, 1)
    assert "broken" not in left


@given(seed=st.integers(0, 10_000), top=st.integers(1, 5), count=st.integers(1, 12))
def test_the_best_of_what_was_seen_always_stay(seed: int, top: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    values = {f"{k:02}": rng.normal(rng.normal(), 1.0, 32).astype(np.float32) for k in range(count)}
    left = stay(values, top)
    best = sorted(values, key=lambda key: (fitness(values[key]), key))[:top]
    assert set(best) <= left <= values.keys()
    assert len(left) >= min(top, count)
    if count > top:
        pivot = values[best[-1]].astype(np.float64)
        for key in values.keys() - set(best):
            assert (key not in left) == (bound(values[key] - pivot) > 0)


def test_images_are_put_in_order_of_difficulty() -> None:
    rng = np.random.default_rng(0)
    values = {f"{k}": (np.linspace(0, k, 64) - 0.45 * k).astype(np.float32) for k in range(5)}
    assert stay(values, 1) == {"0"}
    shuffled = rng.permutation(64)
    mixed = {key: row[shuffled] for key, row in values.items()}
    assert survivors(mixed, 1, shuffled.astype(np.float64), MANY) == {"0"}
    assert len(stay(mixed, 1)) > 1


def test_order_of_candidates_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    values = {f"{k}": rng.normal(k / 9, 1.0, 64).astype(np.float32) for k in range(9)}
    turned = dict(reversed(values.items()))
    assert stay(values, 2) == stay(turned, 2)


def test_wrong_drops_are_rare_against_a_given_rival() -> None:
    """Two equal candidates: the one that looks worse is dropped in 2 x 5 % of draws, each in 5 %."""
    rng = np.random.default_rng(0)
    trials, dropped = 4000, 0
    for _ in range(trials):
        shared = rng.exponential(1.0, 128)
        values = {key: (shared + rng.normal(0, 0.3, 128)).astype(np.float32) for key in "ab"}
        dropped += "a" not in stay(values, 1)
    # Three standard errors of a share of 5 %.
    assert dropped / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    assert dropped / trials >= 0.05 - 3 * math.sqrt(0.05 * 0.95 / trials)


def test_true_best_are_rarely_dropped_among_many() -> None:
    """64 candidates, spread as real ones are; of the true best 8, per comparison, at most 5 % go."""
    rng = np.random.default_rng(1)
    trials, dropped, kept = 300, 0, 0
    for _ in range(trials):
        means = np.sort(rng.exponential(0.5, 64))
        difficulty = rng.exponential(1.0, 128)
        values = {
            f"{k:02}": (difficulty * means[k] + rng.normal(0, 0.5, 128)).astype(np.float32)
            for k in range(64)
        }
        left = stay(values, 8)
        dropped += sum(f"{k:02}" not in left for k in range(8))
        kept += len(left)
    assert dropped / (8 * trials) <= 0.05
    assert kept / trials < 40  # and it is of use
