"""NSGA-II: who survives, who breeds, what the archive keeps, and that it finds a known front."""

import sys
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prunus.errors import MissingExtraError
from prunus.search import Nsga2, hypervolume, uniform

pytest.importorskip("pymoo")

BoolArray = npt.NDArray[np.bool_]
Row = tuple[float, ...]


def first(a: str, b: str) -> str:
    """A child that is its first parent."""
    return a


def breeders(
    initial: Mapping[str, Row],
    later: Sequence[Mapping[str, Row]],
    *,
    seeds: int,
    keys: str | None = None,
) -> Counter[str]:
    """How often each is a parent of the generation that follows ``later``, over many seeds.

    Children are given names and values of the test's own, so survival does not depend on the seed.
    With ``keys``, every child of ``later`` has that key.
    """
    seen: Counter[str] = Counter()
    for seed in range(seeds):
        names: Iterator[str] = iter([name for told in later for name in told])
        parents: list[str] = []

        def breed(
            a: str,
            b: str,
            names: Iterator[str] = names,
            parents: list[str] = parents,
        ) -> str:
            parents.extend((a, b))
            return next(names, "last")

        search = Nsga2(list(initial), breed, generations=len(later) + 1, seed=seed)
        assert search.ask() == list(initial)
        search.tell(np.array(list(initial.values())), list(initial))
        for told in later:
            assert search.ask() == list(told)
            search.tell(np.array(list(told.values())), [keys or name for name in told])
        parents.clear()
        assert len(search.ask()) == len(initial)
        seen.update(parents)
    return seen


# Asking


def test_asks_for_the_initial_population_then_for_as_many_children() -> None:
    search = Nsga2(["a", "b", "c"], first, generations=2)
    assert search.front == []
    states = []
    for number in range(3):
        states.append((search.generation, search.done))
        asked = search.ask()
        assert search.ask() == asked
        assert len(asked) == 3
        if number == 0:
            assert asked == ["a", "b", "c"]
        asked.clear()  # the list is the caller's own
        search.tell(np.eye(3), [f"{number}{k}" for k in range(3)])
        assert [one.key for one in search.told] == [f"{number}{k}" for k in range(3)]
    states.append((search.generation, search.done))
    assert states == [(0, False), (0, False), (1, False), (2, True)]
    assert search.ask() == []
    assert [one.key for one in search.archive] == ["00", "01", "02"]  # the others are equal to them


def test_no_generation_keeps_the_front_of_the_initial_population() -> None:
    search = Nsga2(["a", "b", "c"], first, generations=0)
    search.ask()
    search.tell(np.array([[2.0, 0.0], [3.0, 1.0], [0.0, 2.0]]), ["a", "b", "c"])
    assert search.done and search.ask() == []
    assert [one.genome for one in search.front] == ["c", "a"]


# Survival and tournaments

ORDER = {"b": (1.0, 1.0), "d": (3.0, 3.0), "a": (0.0, 0.0), "c": (2.0, 2.0)}
"""Every one dominates the next of the alphabet."""


def test_parents_win_a_tournament_of_two_by_rank() -> None:
    """Of 4 x 4 pairs drawn with replacement, the best wins 7, the next 5, then 3, then 1."""
    seen = breeders(ORDER, [], seeds=400)
    assert seen.total() == 400 * 4 * 2
    expected = [seen.total() * share / 16 for share in (7, 5, 3, 1)]
    assert stats.chisquare([seen[name] for name in "abcd"], expected).pvalue > 1e-4


def test_parents_of_one_front_win_by_crowding() -> None:
    """Ends are infinite; of (1, 6), (3, 4), (6, 1) the widest box is the last's, then the middle's.

    Among 5 x 5 pairs the middle three win 1, 3 and 5; the ends share the other 16.
    """
    front = {"e": (0, 10), "x": (1, 6), "y": (3, 4), "z": (6, 1), "f": (10, 0)}
    seen = breeders({name: (float(p), float(q)) for name, (p, q) in front.items()}, [], seeds=300)
    observed = [seen["x"], seen["y"], seen["z"], seen["e"] + seen["f"]]
    expected = [seen.total() * share / 25 for share in (1, 3, 5, 16)]
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_the_first_front_survives_before_the_second_and_the_least_crowded_of_that() -> None:
    """Six places: three of the first front; of the second the ends and its widest box.

    The second front is the line x + y = 24 at x = 4, 6, 9, 11, 20, whose middle boxes are as
    9 - 4, 11 - 6 and 20 - 9: u stays. What remains is worse than either.
    """
    initial = {"p": (4, 20), "a": (0, 9), "w1": (30, 30), "q": (6, 18), "w2": (40, 40), "b": (5, 5)}
    later = {"r": (9, 15), "w3": (50, 50), "c": (9, 0), "u": (11, 13), "t": (20, 4), "w4": (60, 60)}
    seen = breeders(
        {name: (float(p), float(q)) for name, (p, q) in initial.items()},
        [{name: (float(p), float(q)) for name, (p, q) in later.items()}],
        seeds=100,
    )
    assert set(seen) == {"a", "b", "c", "p", "t", "u"}


def test_parents_stay_where_children_are_worse() -> None:
    worse = {name.upper(): (9.0 + k, 9.0 + k) for k, name in enumerate("abcd")}
    assert set(breeders(ORDER, [worse], seeds=60)) == set("abcd")
    better = {name.upper(): (-9.0 + k, -9.0 + k) for k, name in enumerate("abcd")}
    assert set(breeders(ORDER, [better], seeds=60)) == set("ABCD")


def test_individuals_with_one_key_count_once() -> None:
    """Four copies of one that dominates all would fill the population; once, it takes one place."""
    copies = {f"copy{k}": (-1.0, -1.0) for k in range(4)}
    seen = breeders(ORDER, [copies], seeds=100, keys="copy")
    assert {name[:4] for name in seen} == {"copy", "a", "b", "c"}
    best = sum(count for name, count in seen.items() if name.startswith("copy"))
    assert best == pytest.approx(seen.total() * 7 / 16, rel=0.15)


def test_where_all_mean_the_same_the_only_one_breeds() -> None:
    search = Nsga2(["a", "b", "c"], first, generations=1)
    search.ask()
    search.tell(np.ones((3, 2)), ["same"] * 3)
    assert len(set(search.ask())) == 1 and len(search.ask()) == 3


# The archive

TOLD = st.lists(
    st.lists(st.tuples(*[st.integers(0, 7).map(float)] * 2), min_size=5, max_size=5),
    min_size=1,
    max_size=5,
)


@given(TOLD)
def test_the_front_is_that_of_everything_told_and_its_volume_never_falls(
    rounds: list[list[Row]],
) -> None:
    search = Nsga2(["?"] * 5, first, generations=len(rounds))
    told: list[Row] = []
    volumes = [0.0]
    for number, rows in enumerate(rounds):
        search.ask()
        search.tell(np.array(rows), [f"{number}.{k}" for k in range(5)])
        told += rows
        assert [one.values for one in search.told] == rows
        best = {
            row
            for row in told
            if not any(all(x <= y for x, y in zip(o, row, strict=True)) and o != row for o in told)
        }
        assert [one.values for one in search.front] == sorted(best)
        assert [one.values for one in search.archive] == [
            row for at, row in enumerate(told) if row in best and row not in told[:at]
        ]
        found = np.array([one.values for one in search.front])
        volumes.append(hypervolume(found, np.array([8.0, 8.0])))
        assert volumes[-1] == pytest.approx(hypervolume(np.array(told), np.array([8.0, 8.0])))
    assert all(before <= after + 1e-9 for before, after in pairwise(volumes))


def test_genomes_that_are_neither_on_the_front_nor_parents_are_let_go() -> None:
    class Genes:
        pass

    search: Nsga2[Genes] = Nsga2([Genes(), Genes()], lambda _, __: Genes(), generations=9)
    held: list[weakref.ref[Genes]] = []
    while asked := search.ask():
        held += [weakref.ref(one) for one in asked]
        worse = float(len(held))
        search.tell(np.array([[worse, worse], [worse + 1, worse + 1]]), [f"{worse}", f"{-worse}"])
        del asked
    alive = [at for at, one in enumerate(held) if one() is not None]
    assert alive == [0, 1, 18, 19]  # the front, the other parent, and the last ones told of


# What is refused


def test_an_empty_population_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Nsga2([], first, generations=1)


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        (np.ones((1, 2)), ["a"]),
        (np.ones((3, 2)), ["a", "b", "c"]),
        (np.ones((2, 2)), ["a"]),
        (np.array([[1.0, np.nan], [1.0, 1.0]]), ["a", "b"]),
        (np.array([[1.0, 1.0], [np.inf, 1.0]]), ["a", "b"]),
    ],
    ids=["too few", "too many", "too few keys", "no number", "infinite"],
)
def test_a_bad_answer_is_refused_and_changes_nothing(
    values: npt.NDArray[np.float64], keys: list[str]
) -> None:
    search = Nsga2(["a", "b"], first, generations=1)
    search.ask()
    with pytest.raises(ValueError, match="score"):
        search.tell(values, keys)
    assert search.archive == [] and search.ask() == ["a", "b"]


def test_an_answer_without_a_question_is_refused() -> None:
    search = Nsga2(["a", "b"], first, generations=1)
    with pytest.raises(ValueError, match="0 genomes"):
        search.tell(np.ones((2, 2)), ["a", "b"])


def test_missing_pymoo_is_told_how_to_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymoo", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'prunus\[front\]'"):
        Nsga2(["a"], first, generations=1)


# What it finds: ZDT1 (Zitzler, Deb, Thiele 2000) with bits. Of 26 bits, the first six are x by
# their sum, the others are to be zero; the true front is y = 1 - sqrt(x) at 7 places.

HEAD, TAIL = 6, 20
FRONT = [(k / HEAD, 1 - (k / HEAD) ** 0.5) for k in range(HEAD + 1)]
CORNER = np.array([1.1, 7.0])
POPULATION, GENERATIONS = 20, 40


def zdt1(bits: BoolArray) -> Row:
    x, g = float(bits[:HEAD].mean()), 1 + 9 * float(bits[HEAD:].mean())
    return x, g * (1 - (x / g) ** 0.5)


def key(bits: BoolArray) -> str:
    return "".join(str(int(bit)) for bit in bits)


def drawn(generator: np.random.Generator) -> BoolArray:
    bits: BoolArray = generator.random(HEAD + TAIL) < 0.5
    return bits


def evolve(seed: int) -> tuple[list[str], Nsga2[BoolArray], list[float]]:
    """Keys asked for, the search at its end, and the volume of its front by generation."""
    generator = np.random.default_rng(seed)

    def breed(a: BoolArray, b: BoolArray) -> BoolArray:
        child = np.array(uniform(a.tolist(), b.tolist(), generator))
        flipped: BoolArray = child ^ (generator.random(child.size) < 1 / child.size)
        return flipped

    search = Nsga2(
        [drawn(generator) for _ in range(POPULATION)], breed, generations=GENERATIONS, seed=seed
    )
    asked: list[str] = []
    volumes: list[float] = []
    while genomes := search.ask():
        keys = [key(bits) for bits in genomes]
        search.tell(np.array([zdt1(bits) for bits in genomes]), keys)
        asked += keys
        volumes.append(hypervolume(np.array([one.values for one in search.front]), CORNER))
    return asked, search, volumes


def test_finds_the_front_of_zdt1_where_as_many_random_draws_do_not() -> None:
    best = hypervolume(np.array(FRONT), CORNER)
    for seed in range(3):
        asked, _, volumes = evolve(seed)
        assert len(asked) == POPULATION * (GENERATIONS + 1)
        assert volumes == sorted(volumes)
        generator = np.random.default_rng(100 + seed)
        chance = hypervolume(np.array([zdt1(drawn(generator)) for _ in asked]), CORNER)
        assert volumes[-1] > 0.97 * best
        assert chance < 0.9 * best


def test_same_seed_asks_for_the_same_whatever_numpy_drew_before() -> None:
    state = np.random.get_state()  # noqa: NPY002 - the global state is what is tested
    try:
        np.random.seed(1)  # noqa: NPY002
        once, _, _ = evolve(0)
        after = np.random.random()  # noqa: NPY002
        np.random.seed(1)  # noqa: NPY002
        assert np.random.random() == after  # noqa: NPY002 - the search drew nothing from it
        np.random.seed(2)  # noqa: NPY002
        again, _, _ = evolve(0)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    assert once == again
    assert evolve(1)[0] != once
