"""Differences of outputs, by hand."""

import torch
from torch import Tensor

from prunus.graph import relative_difference
from prunus.graph.difference import same_whole_numbers

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
