"""Constants that values are written into: as wide as what is written, or as the code says."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.graph import certify, cut, trace
from prunus.meter import count_macs
from tests.helpers import Wired, images, random_choice

X = images(4, 5, 6)
Making = Callable[[Any, Tensor, Tensor], Tensor]


def made(making: Making) -> nn.Module:
    """6 features to 8 of each of 5 steps, what is made of them, 8 features to 3."""
    parts = {"a": nn.Linear(6, 8), "b": nn.Linear(6, 8), "o": nn.Linear(8, 3)}
    return Wired(lambda n, x: n.o(making(n, x, n.a(x))), **parts, hidden=8, steps=5).eval()


def step_by_step(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = torch.empty(x.shape[0], n.steps, n.hidden)
    for step in range(n.steps):
        y[:, step] = h[:, step] * (step + 1)
    return y


def of_a_read_size(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = torch.empty(h.shape)
    y[:, 0] = h[:, -1]
    y[:, 1:] = h[:, :-1]
    return y


def longer_by_ones(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = x.new_ones(x.shape[0], n.steps + 2, h.shape[2])
    y[:, 2:] = h
    return y


def by_another_view(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], h.shape[2], n.steps)
    y.transpose(1, 2)[:] = h
    return y.transpose(1, 2)


def of_two_layers(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 2 * n.steps, h.shape[2])
    y[:, : n.steps] = h
    y[:, n.steps :] = n.b(x)
    return y


def of_another_type(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], n.steps, n.hidden, dtype=torch.float64).to(x)
    y.copy_(h)
    return y


FOLLOWS: list[Making] = [
    step_by_step,
    of_a_read_size,
    longer_by_ones,
    by_another_view,
    of_two_layers,
    of_another_type,
]


@pytest.mark.parametrize("making", FOLLOWS)
def test_a_constant_is_as_wide_as_what_is_written(making: Making) -> None:
    network = made(making)
    found = trace(network, X)
    (group,) = (g for g in found.cuttable if g.name == "a")
    read = {axis.tensor for axis in group.axes}
    assert read == {"a.weight", "a.bias", "o.weight"} | (
        {"b.weight", "b.bias"} if making is of_two_layers else set()
    )
    for seed in range(3):
        choice = {"a": random_choice(found, seed, share=0.5)["a"]}
        plan = found.plan(choice)
        certificate = certify(network, found, plan, train=True)
        assert certificate.passed
        assert certificate.eval_difference < 1e-5
        assert found.macs(choice) == count_macs(cut(network, plan), X[:1]).macs


def of_a_size_in_code(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 5, 8)
    y[:] = h
    return y


def part_of_the_width(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 5, n.hidden)
    y[..., :4] = h[..., :4]
    return y


def into_what_was_computed(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = x.new_ones(x.shape[0], 5, 8).cumsum(2)
    y[:, 1:] = h[:, 1:]
    return y


STAYS: list[Making] = [of_a_size_in_code, part_of_the_width, into_what_was_computed]


@pytest.mark.parametrize("making", STAYS)
def test_what_is_written_into_a_fixed_size_stays_whole(making: Making) -> None:
    network = made(making)
    assert trace(network, X).by_name["a"].refused


def where_it_is_negative(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = h.clone()
    y[y < 0] = 0.0
    return y


def where_another_is_negative(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = h.clone()
    y[n.b(x) < 0] = 0.5
    return y


def one_more_there(n: Any, x: Tensor, h: Tensor) -> Tensor:
    return h.index_put((h > 0,), torch.ones(1), accumulate=True)


def into_the_last_step(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = h.clone()
    y[:, -1][y[:, -1].isnan() | (y[:, -1] > 1)] = 1.0
    return y


MASKED: list[Making] = [
    where_it_is_negative,
    where_another_is_negative,
    one_more_there,
    into_the_last_step,
]


@pytest.mark.parametrize("making", MASKED)
def test_one_value_wherever_a_mask_says_is_put_in_channel_by_channel(making: Making) -> None:
    """Masks of all positions, as ``masked_fill`` takes them."""
    network: Any = made(making)
    found = trace(network, X)
    assert {g.name: g.units for g in found.cuttable} == {"a": 8}
    keep = np.arange(8) % 3 > 0
    plan = found.plan({"a": keep})
    assert certify(network, found, plan).passed
    small = cut(network, plan)
    assert count_macs(small, X[:1]).macs == found.macs(plan.channels)
    with torch.no_grad():  # the other channels, by hand
        said = making(network, X, network.a(X))[..., keep]
        expected = nn.functional.linear(said, network.o.weight[:, keep], network.o.bias)
        assert torch.allclose(small(X), expected, atol=1e-6)


def by_a_mask_in_the_code(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = h.clone()
    y[torch.arange(8).remainder(2).bool().expand(len(x), 5, 8)] = 0.0
    return y


def one_value_each(n: Any, x: Tensor, h: Tensor) -> Tensor:
    y = h.clone()
    y[h < 0] = 2 * h[h < 0]
    return y


@pytest.mark.parametrize("making", [by_a_mask_in_the_code, one_value_each])
def test_channels_that_a_mask_in_the_code_names_stay(making: Making) -> None:
    assert trace(made(making), X).by_name["a"].refused
