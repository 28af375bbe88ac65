"""The genetic search: who is asked for, who breeds, who stays, when it ends, what it finds."""

import itertools
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prunus.search import GeneticSearch, break_point, swap

BoolArray = npt.NDArray[np.bool_]


def mother(a: str, b: str) -> str:
    """A child that is its first parent."""
    return a


class Registry:
    """Breeds children of names of their own, and writes down whose they are."""

    def __init__(self) -> None:
        self.parents: list[tuple[str, str]] = []

    def __call__(self, a: str, b: str) -> str:
        self.parents.append((a, b))
        return f"child{len(self.parents)}"


def letters(count: int) -> list[str]:
    return [chr(ord("a") + k) for k in range(count)]


# Asking


def test_first_are_the_initial_population_then_as_many_as_were_not_selected() -> None:
    search = GeneticSearch(letters(6), Registry(), parents=2, generations=2)
    asked, states = [], [(search.generation, search.done)]
    for scores in ([5, 1, 4, 0, 3, 2], [9, 9, 9, 9], [9, 9, 9, 9]):
        asked.append(search.ask())
        search.tell(scores, asked[-1])
        states.append((search.generation, search.done))
    assert asked == [
        letters(6),
        ["child1", "child2", "child3", "child4"],
        ["child5", "child6", "child7", "child8"],
    ]
    assert states == [(0, False), (0, False), (1, False), (2, True)]
    assert search.ask() == []


def test_asking_twice_gives_the_same_and_breeds_once() -> None:
    registry = Registry()
    search = GeneticSearch(letters(4), registry, parents=2, generations=3)
    once = search.ask()
    assert search.ask() == once
    once.clear()  # the list is the caller's own
    assert search.ask() == letters(4)
    search.tell([0, 1, 2, 3], letters(4))
    assert search.ask() == search.ask() == ["child1", "child2"]
    assert len(registry.parents) == 2


# Selecting and breeding


def test_children_are_bred_from_the_best_by_score_and_from_two_of_them() -> None:
    """The three best of six are b, d, f; then d, the first child (0.5), and f."""
    registry = Registry()
    search = GeneticSearch(letters(6), registry, parents=3, generations=9, seed=1)
    search.ask()
    search.tell([5, 2, 4, 0, 3, 1], letters(6))
    assert [one.genome for one in search.selected] == ["d", "f", "b"]
    for _ in range(8):
        search.ask()
        search.tell([9, 9, 9], ["x", "y", "z"])
    assert len(registry.parents) == 24
    assert {frozenset(pair) for pair in registry.parents} == {
        frozenset(pair) for pair in itertools.combinations("bdf", 2)
    }
    search.ask()
    search.tell([0.5, 7, 7], ["p", "q", "r"])
    assert [one.key for one in search.selected] == ["d", "p", "f"]
    assert [one.values for one in search.selected] == [(0.0,), (0.5,), (1.0,)]


def test_every_ordered_pair_of_parents_is_as_likely() -> None:
    registry = Registry()
    names = [str(k) for k in range(1203)]
    search = GeneticSearch(names, registry, parents=3, generations=1, seed=2)
    search.ask()
    search.tell(list(range(1203)), names)
    search.ask()
    seen = Counter(registry.parents)
    assert set(seen) == set(itertools.permutations("012", 2))
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


def test_equal_keys_breed_once() -> None:
    """a and b mean the same: the two parents are the better of them and c, never a with b."""
    registry = Registry()
    search = GeneticSearch(letters(4), registry, parents=2, generations=1)
    search.ask()
    search.tell([2, 1, 3, 4], ["same", "same", "c", "d"])
    search.ask()
    assert {frozenset(pair) for pair in registry.parents} == {frozenset("bc")}


def test_where_all_mean_the_same_the_only_one_breeds_with_itself() -> None:
    registry = Registry()
    search = GeneticSearch(letters(5), registry, parents=3, generations=1)
    search.ask()
    search.tell([3, 1, 2, 5, 4], ["same"] * 5)
    assert search.ask() == ["child1", "child2"]
    assert registry.parents == [("b", "b")] * 2


POPULATIONS = st.integers(2, 7).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.integers(1, size - 1),
        st.lists(
            st.lists(
                st.tuples(st.integers(-3, 9), st.sampled_from("abcdefghij")),
                min_size=size,
                max_size=size,
            ),
            min_size=1,
            max_size=6,
        ),
    )
)


@given(POPULATIONS)
def test_elites_are_never_lost(case: tuple[int, int, list[list[tuple[int, str]]]]) -> None:
    """Whatever comes: the selected are the best of everything told of so far, each key once."""
    size, parents, rounds = case
    search = GeneticSearch(["?"] * size, mother, parents=parents, generations=len(rounds))
    least: dict[str, float] = {}
    best: list[float] = []
    for told in rounds:
        rows = told[: len(search.ask())]
        search.tell([score for score, _ in rows], [key for _, key in rows])
        for score, key in rows:
            least[key] = min(score, least.get(key, score))
        expected = sorted((score, key) for key, score in least.items())[:parents]
        assert [(one.values[0], one.key) for one in search.selected] == expected
        assert search.best is search.selected[0]
        best.append(search.best.values[0])
    assert best == sorted(best, reverse=True)


def test_who_is_certainly_not_among_the_best_may_be_infinite() -> None:
    registry = Registry()
    search = GeneticSearch(letters(4), registry, parents=2, generations=1)
    search.ask()
    search.tell([float("inf"), 1, float("inf"), 0], letters(4))
    search.ask()
    assert {frozenset(pair) for pair in registry.parents} == {frozenset("bd")}


# The end


def generations(
    scores: Sequence[float], *, limit: int = 99, patience: int | None = None, tolerance: float = 0.0
) -> int:
    """New generations until the search ends, where each brings one child of the next score."""
    search = GeneticSearch(
        ["a", "b"],
        mother,
        parents=1,
        generations=limit,
        patience=patience,
        tolerance=tolerance,
    )
    search.ask()
    search.tell([scores[0], scores[0] + 1], ["0", "first"])
    for number, score in enumerate(scores[1:], start=1):
        if not search.ask():
            break
        search.tell([score], [str(number)])
    assert search.done == (search.ask() == [])
    return search.generation if search.done else -1


FALLING = [10.0, 8.0, 7.9, 7.85, 5.0, 4.9, 4.8, 4.7]
"""Falls by 2, 0.1, 0.05, 2.85, 0.1, 0.1, 0.1."""


@pytest.mark.parametrize(
    ("patience", "tolerance", "end"),
    [
        (1, 0.5, 2),  # 0.1 in generation 2
        (2, 0.5, 3),  # 0.1 + 0.05 in generations 2 and 3
        (3, 0.5, 7),  # 2.15, 3.0, 3.0, then 0.3 in 5 to 7
        (4, 0.5, -1),  # never
        (1, 0.07, 3),
        (1, 0.01, -1),
        (2, 2.5, 2),  # 2.1: no end before there are 2
        (None, 99.0, -1),
    ],
)
def test_ends_when_the_fall_over_the_last_generations_is_too_small(
    patience: int | None, tolerance: float, end: int
) -> None:
    assert generations(FALLING, patience=patience, tolerance=tolerance) == end


@pytest.mark.parametrize("step", [(0.3, 0.2999), (2.0001, 2.0), (0.2, 0.1999)])
def test_a_fall_by_just_the_tolerance_ends_it_whatever_its_bits(step: tuple[float, float]) -> None:
    assert generations([*step, 0.0], patience=1, tolerance=1e-4) == 1


def test_ends_without_tolerance_when_nothing_falls() -> None:
    """It is the best that must fall: a child between the best and the worst is no progress."""
    assert generations([5, 5, 4, 4.5, 4.2, 3], patience=2) == 4
    assert generations([5, 5, 5, 5], patience=1) == 1
    assert generations([5, 4.999, 4.998, 4.997], patience=1) == -1


@pytest.mark.parametrize("limit", [0, 1, 4])
def test_ends_after_the_generations(limit: int) -> None:
    assert generations(FALLING, limit=limit) == limit


def test_no_generation_takes_the_best_of_the_initial_population() -> None:
    """Then all may be parents: there is nobody to breed."""
    search = GeneticSearch(letters(3), mother, parents=3, generations=0)
    search.ask()
    search.tell([2, 0, 1], letters(3))
    assert search.done and search.ask() == []
    assert search.best.genome == "b"
    assert [one.genome for one in search.selected] == ["b", "c", "a"]


# What is refused


@pytest.mark.parametrize(
    ("initial", "parents", "limit"),
    [([], 1, 1), (["a", "b"], 0, 1), (["a", "b"], -1, 1), (["a", "b"], 3, 0), (["a", "b"], 2, 1)],
    ids=["nobody", "no parent", "fewer than none", "more than there are", "no child"],
)
def test_impossible_sizes_are_refused(initial: list[str], parents: int, limit: int) -> None:
    with pytest.raises(ValueError, match="parents"):
        GeneticSearch(initial, mother, parents=parents, generations=limit)


@pytest.mark.parametrize(
    ("scores", "keys"),
    [
        ([1.0], ["a"]),
        ([1.0, 2.0], ["a"]),
        ([1.0], ["a", "b"]),
        ([1.0, 2.0, 3.0], ["a", "b", "c"]),
        ([], []),
        ([1.0, float("nan")], ["a", "b"]),
    ],
)
def test_a_bad_answer_is_refused_and_changes_nothing(scores: list[float], keys: list[str]) -> None:
    search = GeneticSearch(["a", "b"], mother, parents=1, generations=1)
    search.ask()
    with pytest.raises(ValueError, match="score"):
        search.tell(scores, keys)
    assert search.ask() == ["a", "b"] and search.selected == []
    search.tell([2.0, 1.0], ["a", "b"])
    assert search.best.genome == "b"


def test_an_answer_without_a_question_is_refused() -> None:
    search = GeneticSearch(["a", "b"], mother, parents=1, generations=0)
    with pytest.raises(ValueError, match="0 genomes"):
        search.tell([1.0, 2.0], ["a", "b"])
    search.ask()
    search.tell([1.0, 2.0], ["a", "b"])
    with pytest.raises(ValueError, match="0 genomes"):
        search.tell([0.0, 0.0], ["c", "d"])
    assert search.best.genome == "a"


def test_one_objective_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymoo", None)
    assert generations(FALLING, limit=2) == 2


# What it finds: a planted choice of 3 of 10 units in each of 4 layers

LAYERS, UNITS, KEPT = 4, 10, 3
Genome = tuple[BoolArray, ...]


def drawn(generator: np.random.Generator) -> Genome:
    return tuple(
        np.isin(np.arange(UNITS), generator.choice(UNITS, KEPT, replace=False))
        for _ in range(LAYERS)
    )


def missed(genome: Genome, planted: Genome) -> int:
    """Planted units that the genome lacks: 0 to 12."""
    return sum(int((t & ~g).sum()) for g, t in zip(genome, planted, strict=True))


def key(genome: Genome) -> str:
    return "".join(str(int(bit)) for layer in genome for bit in layer)


def evolve(seed: int, planted: Genome, *, pairs_seed: int = 0) -> list[list[str]]:
    """Keys asked for in every generation; the paper's operators at its rates."""
    generator = np.random.default_rng(seed)

    def breed(a: Genome, b: Genome) -> Genome:
        child = break_point(a, b, 0.6)
        if generator.random() < 0.6:
            k = int(generator.integers(LAYERS))
            child = (*child[:k], swap(child[k], 1, generator), *child[k + 1 :])
        return child

    search = GeneticSearch(
        [drawn(generator) for _ in range(20)], breed, parents=5, generations=30, seed=pairs_seed
    )
    asked = []
    while genomes := search.ask():
        assert all(layer.sum() == KEPT for genome in genomes for layer in genome)
        search.tell([missed(genome, planted) for genome in genomes], list(map(key, genomes)))
        asked.append([key(genome) for genome in genomes])
    asked.append([key(search.best.genome)])
    return asked


def test_same_seeds_ask_for_the_same_and_others_for_others() -> None:
    planted = drawn(np.random.default_rng(99))
    assert evolve(0, planted) == evolve(0, planted)
    assert evolve(0, planted, pairs_seed=1)[0] == evolve(0, planted)[0]
    assert evolve(0, planted, pairs_seed=1)[1] != evolve(0, planted)[1]


def test_finds_planted_units_where_as_many_random_draws_do_not() -> None:
    """470 evaluations each; one draw holds a unit with probability 0.3: 3.6 of 12 on average."""
    by_search, by_chance = [], []
    for seed in range(5):
        generator = np.random.default_rng(1000 + seed)
        planted = drawn(generator)
        *asked, (found,) = evolve(seed, planted)
        evaluations = sum(map(len, asked))
        assert evaluations == 20 + 30 * 15
        by_search.append(sum(a == "1" != b for a, b in zip(key(planted), found, strict=True)))
        by_chance.append(min(missed(drawn(generator), planted) for _ in range(evaluations)))
    assert max(by_search) <= 1
    assert min(by_chance) > max(by_search)
