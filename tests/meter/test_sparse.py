"""Bytes of a bitmask and values, by hand."""

import pytest
import torch
from torch import nn

from prunus.errors import InputError
from prunus.meter import sparse_bytes


def layer(inputs: int, outputs: int, zeros: int) -> nn.Linear:
    """A layer without bias, of ones and so many zeros."""
    made = nn.Linear(inputs, outputs, bias=False)
    with torch.no_grad():
        made.weight.fill_(1.0)
        made.weight.view(-1)[:zeros] = 0.0
    return made


@pytest.mark.parametrize(
    ("zeros", "expected"),
    [
        (0, 4 * 15),  # whole: a mask would only add to it
        (1, 2 + 4 * 14),  # 15 bits are two bytes
        (7, 2 + 4 * 8),
        (15, 2),
    ],
)
def test_a_mask_of_one_bit_and_what_is_not_zero(zeros: int, expected: int) -> None:
    assert sparse_bytes(layer(5, 3, zeros)) == expected


def test_a_tensor_stays_whole_where_its_mask_costs_more_than_its_zeros_save() -> None:
    # 64 bits are 8 bytes; of two bytes each, 4 zeros save as much, 3 save less, 5 save two more.
    sizes = [sparse_bytes(layer(8, 8, zeros).half()) for zeros in (3, 4, 5)]
    assert sizes == [128, 128, 126]


def test_every_parameter_has_the_form_that_is_smaller_for_it() -> None:
    last = nn.Linear(4, 2)
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.fill_(1.0)
        last.get_parameter("bias")[0] = 0.0
    network = nn.Sequential(layer(4, 4, 8), layer(4, 4, 0), last)
    # 2 + 8 * 4; 16 * 4; 8 * 4; a bias of one zero in two: 1 + 4
    assert sparse_bytes(network) == 34 + 64 + 32 + 5


def test_buffers_are_stored_whole() -> None:
    norm = nn.BatchNorm1d(16)  # weight of ones, bias of zeros, mean of zeros, variance of ones
    assert sparse_bytes(norm) == 16 * 4 + 2 + 16 * 4 + 16 * 4 + 8  # and the count of batches


def test_tied_tensors_are_stored_once() -> None:
    first, second = layer(4, 4, 8), layer(4, 4, 0)
    second.weight = first.weight
    assert sparse_bytes(nn.Sequential(first, second)) == sparse_bytes(first) == 2 + 8 * 4


def test_negative_zero_is_zero() -> None:
    one = layer(4, 4, 0)
    with torch.no_grad():
        one.weight[0] = -0.0
    assert sparse_bytes(one) == 2 + 12 * 4


def test_a_network_without_values_is_refused() -> None:
    with pytest.raises(InputError, match="'weight' is on the meta device"):
        sparse_bytes(nn.Linear(2, 2, device="meta"))
