"""Fronts, crowding and hypervolume: against definitions by brute force, and by hand."""

import itertools
import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.errors import MissingExtraError
from prunus.search import hypervolume, nondominated
from prunus.search.pareto import FloatArray, crowding, fronts, require_pymoo

pytest.importorskip("pymoo")

Row = tuple[float, ...]


def tables(largest: int = 6, least_rows: int = 1) -> st.SearchStrategy[list[Row]]:
    """Rows of 1 to 4 objectives, of few values: equal rows and equal columns are common."""
    return st.integers(1, 4).flatmap(
        lambda objectives: st.lists(
            st.tuples(*[st.integers(0, largest).map(float)] * objectives),
            min_size=least_rows,
            max_size=14,
        )
    )


def dominates(a: Row, b: Row) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def peeled(rows: list[Row]) -> list[list[int]]:
    """Fronts by definition: who is dominated by none of those left, again and again."""
    left, found = list(range(len(rows))), []
    while left:
        front = [k for k in left if not any(dominates(rows[j], rows[k]) for j in left)]
        found.append(front)
        left = [k for k in left if k not in front]
    return found


# Fronts


@given(tables())
def test_fronts_are_peeled_one_by_one(rows: list[Row]) -> None:
    assert [front.tolist() for front in fronts(np.array(rows))] == peeled(rows)


@given(tables())
def test_nondominated_is_the_first_front_with_every_row_once(rows: list[Row]) -> None:
    first = [
        k
        for k, row in enumerate(rows)
        if not any(dominates(other, row) for other in rows) and row not in rows[:k]
    ]
    assert nondominated(np.array(rows)).tolist() == first


def test_fronts_by_hand() -> None:
    """Rows 0 and 3 trade off; 1 is worse than 0, 2 worse than 1; 4 equals 0."""
    values = np.array([[1.0, 3.0], [2.0, 3.0], [2.0, 4.0], [2.0, 1.0], [1.0, 3.0]])
    assert [front.tolist() for front in fronts(values)] == [[0, 3, 4], [1], [2]]
    assert nondominated(values).tolist() == [0, 3]


@given(tables(), st.integers(0, 3))
def test_fronts_see_order_alone(rows: list[Row], power: int) -> None:
    """Dominance is a matter of order: a growing function of an objective changes no front."""
    values = np.array(rows)
    grown = values.copy()
    column = power % values.shape[1]
    grown[:, column] = np.expm1(values[:, column]) * 10.0**power - 3
    assert [f.tolist() for f in fronts(grown)] == [f.tolist() for f in fronts(values)]


# Crowding


def summed(rows: list[Row]) -> list[float]:
    """Deb et al. 2002, section III-B, as its listing has it: a sum over objectives."""
    distance = [0.0] * len(rows)
    for m in range(len(rows[0])):
        order = sorted(range(len(rows)), key=lambda k: rows[k][m])
        span = rows[order[-1]][m] - rows[order[0]][m]
        distance[order[0]] = distance[order[-1]] = math.inf
        for before, k, after in zip(order, order[1:], order[2:], strict=False):
            distance[k] += (rows[after][m] - rows[before][m]) / span
    return distance


def test_crowding_by_hand() -> None:
    """Both objectives span 10; the mean side of the box between the neighbors of each row.

    (1, 6): (3 - 0) / 10 and (10 - 4) / 10. (3, 4): 5 / 10 twice. (6, 1): 7 / 10 and 4 / 10.
    """
    values = np.array([[3.0, 4.0], [10.0, 0.0], [1.0, 6.0], [0.0, 10.0], [6.0, 1.0]])
    assert crowding(values).tolist() == pytest.approx([0.5, math.inf, 0.45, math.inf, 0.55])


@given(st.integers(2, 12), st.integers(2, 3), st.integers(0, 999))
def test_crowding_is_debs_per_objective(count: int, objectives: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(count, objectives)) * 100
    rows = [tuple(row) for row in values.tolist()]
    expected = [each / objectives for each in summed(rows)]
    assert crowding(values).tolist() == pytest.approx(expected)


@given(st.integers(3, 12), st.integers(0, 999))
def test_crowding_has_no_unit(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(count, 2))
    other = values * np.array([1e9, 1e-6]) + np.array([5.0, -2e-6])
    assert crowding(other).tolist() == pytest.approx(crowding(values).tolist(), rel=1e-6)


def test_crowding_does_not_touch_its_input() -> None:
    values = np.array([[3.0, 4.0], [10.0, 0.0], [1.0, 6.0]])
    before = values.copy()
    crowding(values)
    assert np.array_equal(values, before)


# Hypervolume


def cells(rows: list[Row], corner: int) -> int:
    """Unit cells of the grid up to the corner that some row dominates: the volume of whole rows."""
    grid = itertools.product(range(corner), repeat=len(rows[0]))
    return sum(
        any(all(x <= c for x, c in zip(r, cell, strict=True)) for r in rows) for cell in grid
    )


def boxes(rows: list[Row], corner: Row) -> float:
    """Volume of a union of boxes, by inclusion and exclusion; rows within the corner."""
    total = 0.0
    for size in range(1, len(rows) + 1):
        for some in itertools.combinations(rows, size):
            sides = [c - max(column) for c, *column in zip(corner, *some, strict=True)]
            total -= (-1) ** size * math.prod(sides)
    return total


def staircase(rows: list[Row], corner: Row) -> float:
    """Area of a 2-D front from left to right, a step at a time."""
    area, height = 0.0, corner[1]
    for x, y in sorted(rows):
        area += max(0.0, height - y) * (corner[0] - x)
        height = min(height, y)
    return area


def test_hypervolume_by_hand() -> None:
    """Corner (4, 4): columns of height 1, 2 and 3; the row (3, 3) adds nothing."""
    values = np.array([[2.0, 2.0], [1.0, 3.0], [3.0, 1.0], [3.0, 3.0]])
    assert hypervolume(values, np.array([4.0, 4.0])) == pytest.approx(6)
    solid = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    # Three boxes of 2 * 1 * 1 that share the unit cube at the corner, and nothing else.
    assert hypervolume(solid, np.array([2.0, 2.0, 2.0])) == pytest.approx(4)


@given(tables(largest=6))
def test_hypervolume_counts_cells(rows: list[Row]) -> None:
    """Rows on the corner's sides and beyond it (5, 6) are among them, and count for nothing."""
    found = hypervolume(np.array(rows), np.full(len(rows[0]), 5.0))
    assert found == pytest.approx(cells(rows, 5))


@given(st.integers(1, 20), st.integers(0, 999))
def test_hypervolume_of_two_objectives_is_a_staircase(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(-3, 3, size=(count, 2))
    rows = [tuple(row) for row in values.tolist()]
    assert hypervolume(values, np.array([3.0, 3.5])) == pytest.approx(staircase(rows, (3.0, 3.5)))


@given(st.integers(1, 6), st.integers(0, 999))
def test_hypervolume_of_three_objectives_is_a_union_of_boxes(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(-1, 1, size=(count, 3))
    rows = [tuple(row) for row in values.tolist()]
    corner = (1.0, 1.5, 2.0)
    assert hypervolume(values, np.array(corner)) == pytest.approx(boxes(rows, corner))


@pytest.mark.parametrize(
    "values",
    [np.empty((0, 2)), np.array([[1.0, 0.0]]), np.array([[0.0, 2.0], [7.0, -9.0]])],
    ids=["none", "on the side", "beyond"],
)
def test_hypervolume_of_nothing_within_the_reference(values: FloatArray) -> None:
    assert hypervolume(values, np.array([1.0, 1.0])) == 0.0


# Without the extra


@pytest.mark.parametrize(
    "call",
    [
        require_pymoo,
        lambda: fronts(np.zeros((1, 2))),
        lambda: nondominated(np.zeros((1, 2))),
        lambda: crowding(np.zeros((1, 2))),
        lambda: hypervolume(np.zeros((1, 2)), np.ones(2)),
    ],
    ids=["require_pymoo", "fronts", "nondominated", "crowding", "hypervolume"],
)
def test_missing_pymoo_is_told_how_to_get(
    call: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pymoo", None)  # what Python does for "not installed"
    with pytest.raises(MissingExtraError, match=r"pip install 'prunus\[front\]'") as caught:
        call()
    assert "\n" not in str(caught.value)
