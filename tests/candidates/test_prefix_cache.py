"""What is kept of prefixes that ran, within a limit of bytes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.candidates.prefix import Passed
from prunus.candidates.prefix_cache import PrefixCache


def passed(numbers: int, value: float = 0.0) -> Passed:
    """Four bytes to a number."""
    return Passed(torch.full((numbers,), value), {})


def test_bytes_of_nested_values() -> None:
    value = {"a": (torch.zeros(3), [torch.zeros(2, dtype=torch.int64)]), "b": 7}
    assert Passed(value, {}).nbytes == 12 + 16


def test_oldest_used_group_goes_first() -> None:
    cache = PrefixCache(40)
    cache.put("a", 0, passed(4))
    cache.put("b", 0, passed(4))
    assert cache.get("a", 0) is not None  # now b is the oldest
    cache.put("c", 0, passed(4))
    assert cache.get("b", 0) is None
    assert cache.get("a", 0) is not None and cache.get("c", 0) is not None
    assert len(cache) == 2
    assert cache.hits == 3


def test_group_is_never_thrown_away_for_itself() -> None:
    cache = PrefixCache(40)
    cache.put("a", 0, passed(4))
    cache.put("b", 0, passed(4))
    cache.put("b", 1, passed(4))  # a goes
    cache.put("b", 2, passed(4))  # does not fit beside its own
    assert [cache.get("b", item) is not None for item in range(3)] == [True, True, False]
    assert cache.get("a", 0) is None


def test_limit_of_zero_keeps_nothing() -> None:
    cache = PrefixCache(0)
    cache.put("a", 0, passed(1))
    assert len(cache) == 0 and cache.get("a", 0) is None and cache.hits == 0


@given(
    limit=st.integers(0, 200),
    calls=st.lists(
        st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3), st.integers(1, 20)),
        max_size=60,
    ),
)
def test_cache_respects_its_limit_and_returns_what_was_put(
    limit: int, calls: list[tuple[bool, int, int, int]]
) -> None:
    cache = PrefixCache(limit)
    known: dict[tuple[int, int], Passed] = {}
    for is_put, group, item, size in calls:
        if is_put and (cache.get(group, item) is None):
            known[group, item] = passed(size)
            cache.put(group, item, known[group, item])
        found = cache.get(group, item)
        assert found is None or found is known[group, item]
        kept = [known[key] for key in known if cache.get(*key) is known[key]]
        assert sum(value.nbytes for value in kept) <= limit
        assert len(cache) == len(kept)
