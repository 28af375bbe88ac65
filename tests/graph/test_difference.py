"""Differences of outputs, by hand: what they are relative to, and what is left out of it."""

import pytest
import torch
from torch import Tensor

from prunus.graph import relative_difference
from prunus.graph.difference import FINE, same_whole_numbers

NAN, INF = float("nan"), float("inf")
ONE = torch.tensor([1.0, -4.0])


def test_relative_difference_by_hand() -> None:
    assert relative_difference(ONE, torch.tensor([1.0, -3.0])) == 0.25
    assert relative_difference((ONE, {"x": [ONE]}), (ONE, {"x": [ONE + 1]})) == 0.25
    assert relative_difference(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_difference(torch.zeros(2), torch.ones(2)) == 1.0
    assert relative_difference(ONE, torch.tensor([1.0, NAN])) == INF
    assert relative_difference(torch.tensor([1.0, INF]), torch.tensor([1.0, -INF])) == INF
    assert relative_difference(torch.tensor([1.0, -INF]), torch.tensor([1.0, -INF])) == 0.0
    assert relative_difference(ONE, torch.ones(3)) == INF
    assert relative_difference(ONE, (ONE, ONE)) == INF
    assert relative_difference(torch.ones(2).int(), torch.ones(2).int()) == INF


def columns(*scales: float, rows: int = 64) -> Tensor:
    """Columns of values between 1 and 2, times a scale each."""
    generator = torch.Generator().manual_seed(0)
    values = 1 + torch.rand(rows, len(scales), generator=generator, dtype=torch.float64)
    return values * torch.tensor(scales, dtype=torch.float64)


@pytest.mark.parametrize("dim", [1, -1])
def test_a_column_is_measured_by_itself(dim: int) -> None:
    """1e-6 in a column whose median is between 1 and 2, beside others of 100."""
    one = columns(100, 1, 100).reshape(16, 4, 3).movedim(-1, dim)
    other = one.clone()
    other.movedim(dim, -1)[..., 1] += 1e-6
    assert 0.5e-6 < relative_difference(one, other, share=FINE) < 1.1e-6
    assert relative_difference(one, other) < 1e-8


def test_no_column_is_measured_by_less_than_a_share_of_the_largest() -> None:
    """What is left of numbers near 1000 where they cancel has their rounding: here 1e-13 of them."""
    one = torch.cat([columns(1000), columns(0), columns(1e-13)], 1)
    largest = float(one.max())
    for column in (1, 2):
        other = one.clone()
        other[0, column] += 1e-13 * largest
        found = relative_difference(one, other, share=FINE)
        assert found == pytest.approx(1e-13 / FINE, rel=0.01)


def test_many_columns_of_one_value_are_small_by_chance() -> None:
    """Logits of one sample: 1000 columns, of which the smallest is a thousandth."""
    one = torch.arange(1.0, 1001.0).reshape(1, -1)
    assert relative_difference(one, one + 1e-4, share=FINE) < 1e-6


@pytest.mark.parametrize("fill", [-1e9, 1e4, -100.0, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("share", [1.0, FINE])
def test_what_is_filled_in_is_no_size(fill: float, share: float) -> None:
    one = columns(1, 1).float()
    other = one + 0.01
    plain = relative_difference(one, other, share=share)
    for tensor in (one, other):
        tensor[::3] = fill
    assert relative_difference(one, other, share=share) == pytest.approx(plain, rel=0.5)
    other[::3] *= 0.99  # it is measured like any number where it differs
    assert relative_difference(one, other, share=share) >= 0.0099


def test_what_stands_far_above_the_rest_only_once_is_no_size() -> None:
    one, other = torch.tensor([[-1e9, 1.0, 2.0]]), torch.tensor([[-1e9, 1.1, 2.0]])
    assert relative_difference(one, other) == pytest.approx(0.05, rel=0.01)


def test_saturated_probabilities_are_answers() -> None:
    one = torch.tensor([1.0, 1.0, 0.0, 1e-17], dtype=torch.float64)
    other = torch.tensor([1.0, 1.0, 1.1e-16, 1e-17], dtype=torch.float64)
    assert relative_difference(one, other, share=FINE) < 1e-12


def test_one_value_at_all_places_is_no_fill() -> None:
    one = torch.tensor([5.0, 5.0, 5.0, 1e-9])
    other = torch.tensor([5.0, 5.0, 5.0, 1e-9])
    other[0] = 5.5
    assert relative_difference(one, other) == pytest.approx(0.1)


def test_empty_outputs_are_equal_where_others_are_compared() -> None:
    empty = torch.zeros(0, 3)
    assert relative_difference((ONE, empty), (ONE, empty)) == 0.0
    assert relative_difference((ONE, empty), (ONE, torch.zeros(0, 2))) == INF
    assert relative_difference(empty, empty) == INF  # nothing to compare proves nothing


def test_sparse_and_nested_outputs_are_compared_by_their_values() -> None:
    def nested(*rows: Tensor) -> Tensor:
        return torch.nested.nested_tensor(list(rows), layout=torch.jagged)

    assert relative_difference(ONE.to_sparse(), torch.tensor([1.0, -3.0]).to_sparse()) == 0.25
    assert relative_difference(nested(ONE, ONE[:1]), nested(ONE, ONE[:1] + 1)) == 1.0
    assert relative_difference(nested(ONE, ONE[:1]), nested(ONE[:1], ONE)) == INF
    assert same_whole_numbers(ONE.int().to_sparse(), ONE.int().to_sparse())
    assert not same_whole_numbers(ONE.int().to_sparse(), (ONE.int() + 1).to_sparse())
