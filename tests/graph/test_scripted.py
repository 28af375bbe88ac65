"""Functions compiled by TorchScript: followed as the same ones in Python are, or refused by the probe."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.graph import certify, cut, trace
from prunus.meter import count_macs
from tests.helpers import Wired

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


def biased(x: Tensor, bias: Tensor) -> Tensor:
    return (x + bias) * 0.5


def gated(x: Tensor, bias: Tensor) -> Tensor:
    y = (x + bias).clone()
    y[y < 0] = 0.0
    return y * torch.sigmoid(x)


def normed(x: Tensor, bias: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) + bias


def looped(x: Tensor, bias: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for k in range(3):
        y = y + float(k) * x + bias
    return y


def shuffled(x: Tensor, bias: Tensor) -> Tensor:
    parts = (x + bias).view(x.size(0), x.size(1), 2, -1)
    return parts.transpose(2, 3).flatten(2)


def scaled(x: Tensor, bias: Tensor) -> Tensor:
    return x / float(x.size(-1)) + bias


def asking(x: Tensor, bias: Tensor) -> Tensor:
    return x + bias if x.size(-1) == 8 else x - bias


def network(function: Any) -> Any:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(6, 8), "bias": nn.Parameter(torch.randn(8)), "out": nn.Linear(8, 3)}
    return Wired(lambda n, x: n.out(function(n.a(x), n.bias)), **layers).eval()


# torch.jit.script says that it is deprecated; networks have it all the same.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    ("function", "units"), [(biased, 8), (gated, 8), (normed, 8), (looped, 8), (shuffled, 4)]
)
def test_a_scripted_function_is_followed_as_the_same_in_python(function: Any, units: int) -> None:
    for made in (function, torch.jit.script(function)):
        dense = network(made)
        found = trace(dense, X)
        assert [(g.name, g.units) for g in found.cuttable] == [("a", units)]
        plan = found.plan({"a": np.arange(units) % 3 > 0})
        assert certify(dense, found, plan).passed
        assert count_macs(cut(dense, plan), X[:1]).macs == found.macs(plan.channels)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("function", [scaled, asking])
def test_a_scripted_function_that_computes_with_a_size_is_refused(function: Any) -> None:
    """What it does with sizes cannot be watched; that cut and masked network disagree is seen."""
    refused = trace(network(torch.jit.script(function)), X).by_name["a"].refused
    assert refused.startswith("probe failed: cut and masked network disagree")
