"""What is kept is what a neighbor can use: the nodes of the tree of beginnings."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from prunus.candidates.sharing import in_sharing_order
from prunus.plan import NetworkShape, Plan

# A beginning is a path in a tree: once two differ they differ for ever, as hashes of prefixes do.
Path = tuple[int, ...]
DEPTH = 5
paths = st.tuples(*[st.integers(0, 1)] * DEPTH)


def plan(name: str) -> Plan:
    """Any plan that can be told from others."""
    shape = NetworkShape(tensors={name: (1,)})
    return Plan(source=shape, result=shape)


def ordered(given_paths: dict[str, Path]) -> list[tuple[str, tuple[int, ...]]]:
    def signatures(asked: Plan) -> tuple[str, ...]:
        path = given_paths[next(iter(asked.source.tensors))]
        return tuple(str(path[: n + 1]) for n in range(len(path)))

    return list(in_sharing_order({key: plan(key) for key in given_paths}, signatures))


def agreed(a: Path, b: Path) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), paths, max_size=12))
def test_neighbors_keep_what_they_share_and_nothing_is_kept_for_nobody(
    candidates: dict[str, Path],
) -> None:
    found = ordered(candidates)
    keys = [key for key, _ in found]
    assert sorted(keys) == sorted(candidates)
    for (a, kept_a), (b, kept_b) in pairwise(found):
        common = agreed(candidates[a], candidates[b])
        if common:
            assert common - 1 in kept_a
            assert common - 1 in kept_b
    for key, kept in found:
        assert list(kept) == sorted(set(kept))
        for index in kept:
            others = [o for o in candidates if o != key]
            assert any(agreed(candidates[key], candidates[o]) > index for o in others)


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), paths, min_size=2, max_size=12))
def test_deepest_that_is_shared_with_anybody_is_shared_with_a_neighbor(
    candidates: dict[str, Path],
) -> None:
    found = ordered(candidates)
    keys = [key for key, _ in found]
    for at, key in enumerate(keys):
        deepest = max(agreed(candidates[key], candidates[o]) for o in keys if o != key)
        beside = [
            agreed(candidates[key], candidates[o])
            for o in keys[max(0, at - 1) : at + 2]
            if o != key
        ]
        assert max(beside) == deepest
        if deepest:
            assert deepest - 1 in found[at][1]


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), paths, min_size=2, max_size=12))
def test_each_beginning_runs_once(candidates: dict[str, Path]) -> None:
    """Running from the deepest kept activation, no shared part is computed a second time."""
    kept: set[Path] = set()
    ran = 0
    for key, share in ordered(candidates):
        path = candidates[key]
        deepest = max((n + 1 for n in share if path[: n + 1] in kept), default=0)
        ran += DEPTH - deepest
        kept |= {path[: n + 1] for n in share}
    nodes = {path[: n + 1] for path in candidates.values() for n in range(DEPTH)}
    assert ran == len(nodes)


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), paths, max_size=8), st.randoms())
def test_order_of_candidates_does_not_matter(candidates: dict[str, Path], random: Any) -> None:
    items = list(candidates.items())
    random.shuffle(items)
    assert ordered(dict(items)) == ordered(candidates)


def test_by_hand() -> None:
    """a and b agree at all three, c with both up to the first, d with none."""
    candidates: dict[str, Path] = {"a": (0, 0, 0), "b": (0, 0, 0), "c": (0, 1, 0), "d": (1, 0, 0)}
    assert ordered(candidates) == [("a", (0, 2)), ("b", (0, 2)), ("c", (0,)), ("d", ())]


def test_no_boundaries_and_no_candidates() -> None:
    assert ordered({"a": (), "b": ()}) == [("a", ()), ("b", ())]
    assert ordered({}) == []
