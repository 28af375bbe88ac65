"""More operations between layers: what may be cut beside them, certified, and the numbers by hand."""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from prunus.graph import Trace, certify, cut, trace
from prunus.meter import count_macs, count_params
from prunus.plan import BoolArray


def proven(network: nn.Module, x: Tensor, rounds: int = 3) -> Trace:
    """The trace; cuts drawn at random are certified, and their predicted costs are those counted."""
    found = trace(network.eval(), x)
    generator = np.random.default_rng(0)
    for _ in range(rounds):
        keep: dict[str, BoolArray] = {}
        for group in found.cuttable:
            keep[group.name] = generator.random(group.units) < 0.6
            keep[group.name][0] = True
        plan = found.plan(keep)
        assert certify(network, found, plan, x).passed
        small = cut(network, plan)
        assert count_macs(small, x[:1]).macs == found.macs(plan.channels)
        assert count_params(small) == found.params(plan.channels)
    return found


def units(found: Trace) -> dict[str, int]:
    return {group.name: group.units for group in found.cuttable}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_weights_with_a_norm_are_normalised_anew_over_the_channels_that_stay() -> None:
    first, second = weight_norm(nn.Conv1d(6, 8, 3)), weight_norm(nn.Conv1d(8, 5, 3))
    network, x = (
        nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv1d(5, 2, 1)),
        drawn(2, 6, 9),
    )
    found = proven(network, x)
    assert list(units(found).values()) == [8, 5]
    stays = torch.tensor([True, False, True, True, False, True, True, True])
    small = cut(network, found.plan({found.cuttable[0].name: stays.numpy()}))
    scale, direction = cast("Any", second).parametrizations.weight.parameters()
    direction = direction[:, stays]
    weight = scale * direction / direction.square().sum((1, 2), keepdim=True).sqrt()
    hidden = functional.conv1d(first(x)[:, stays].relu(), weight, second.bias)
    assert torch.allclose(small(x), network[4](hidden.relu()), atol=1e-6)
