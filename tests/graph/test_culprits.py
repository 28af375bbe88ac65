"""Group testing: who fails among many, in few tests."""

from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from prunus.graph.culprits import culprits

NAMES = [str(k) for k in range(94)]


def failing(*sets: set[str]) -> tuple[Callable[[Sequence[str]], str], list[int]]:
    """A test that fails where all of one of these sets are in it, and the sizes that were tested."""
    sizes: list[int] = []

    def failure(names: Sequence[str]) -> str:
        sizes.append(len(names))
        bad = [one for one in sets if one <= set(names)]
        return f"{sorted(bad[0])} fail" if bad else ""

    return failure, sizes


def test_nobody_fails_in_one_test() -> None:
    failure, sizes = failing()
    assert culprits(NAMES, failure) == {}
    assert sizes == [94]
    assert culprits([], failure) == {}


def test_one_of_many_is_found_in_a_logarithm_of_tests() -> None:
    failure, sizes = failing({"70"})
    assert culprits(NAMES, failure) == {"70": "['70'] fail"}
    assert len(sizes) <= 1 + 2 * 7 + 1  # all, both halves of each of 7 halvings, the rest


@given(st.sets(st.sampled_from(NAMES)))
def test_those_that_fail_alone_are_found_and_no_others(bad: set[str]) -> None:
    failure, sizes = failing(*({name} for name in bad))
    assert culprits(NAMES, failure) == {name: f"['{name}'] fail" for name in bad}
    assert len(sizes) <= 2 * len(NAMES)


@given(st.lists(st.sets(st.sampled_from(NAMES), min_size=1, max_size=3), max_size=3))
def test_the_rest_is_right_together_whatever_fails_with_what(sets: list[set[str]]) -> None:
    """Sets that fail only together, across halves and beside others."""
    failure, _ = failing(*sets)
    found = culprits(NAMES, failure)
    assert not failure([name for name in NAMES if name not in found])
    assert bool(found) == bool(sets)


def test_a_pair_that_fails_together_goes_and_strangers_to_it_stay() -> None:
    failure, _ = failing({"0", "1"})
    assert culprits(NAMES, failure).keys() == {"0", "1"}
