"""Views that part channels by numbers: sizes that coincide, plain ones, and ones that are left open."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.graph import Trace, certify, cut, trace
from prunus.meter import count_macs
from tests.helpers import Wired

Taking = Callable[[Any, Tensor], Any]
TOKENS = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
FLAT = TOKENS[:, 0]


def proven(network: nn.Module, name: str, units: int, x: Tensor) -> tuple[Any, Trace]:
    """A network cut to every second of its only group's units, certified and counted."""
    found = trace(network, x)
    assert [(g.name, g.units) for g in found.cuttable] == [(name, units)]
    keep = np.arange(units)[::-1] % 2 == 0
    plan = found.plan({name: keep})
    certificate = certify(network, found, plan)
    assert certificate.passed and certificate.train_difference is not None
    small = cut(network, plan)
    assert count_macs(small, x[:1]).macs == found.macs(plan.channels)
    return small, found


def attention(taking: Taking, heads: int, width: int) -> nn.Module:
    """Fused attention over what ``taking`` makes of one layer's queries, keys and values."""

    def attend(n: Any, x: Tensor) -> Tensor:
        q, k, v = taking(n, n.qkv(x))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        out: Tensor = n.out(mixed.reshape(*x.shape[:2], -1))
        return out

    torch.manual_seed(0)
    layers = {"qkv": nn.Linear(6, 3 * heads * width), "out": nn.Linear(heads * width, 3)}
    return Wired(attend, **layers, num_heads=heads, width=width).eval()


def all_in_one(n: Any, made: Tensor) -> Any:
    return made.view(*made.shape[:2], 3, n.num_heads, -1).permute(2, 0, 3, 1, 4)


def all_in_one_reshaped(n: Any, made: Tensor) -> Any:
    return made.reshape(*made.shape[:2], 3, n.num_heads, -1).permute(2, 0, 3, 1, 4)


def three_last(n: Any, made: Tensor) -> Any:
    return made.view(*made.shape[:2], n.num_heads, -1, 3).permute(4, 0, 2, 1, 3)


def each_by_itself(n: Any, made: Tensor) -> Any:
    return [p.view(*p.shape[:2], n.num_heads, -1).transpose(1, 2) for p in made.chunk(3, -1)]


def unflattened(n: Any, made: Tensor) -> Any:
    return made.unflatten(-1, (3, n.num_heads, -1)).permute(2, 0, 3, 1, 4)


def heads_left_open(n: Any, made: Tensor) -> Any:
    return [p.view(*p.shape[:2], -1, n.width).transpose(1, 2) for p in made.chunk(3, -1)]


def heads_left_open_by_unflatten(n: Any, made: Tensor) -> Any:
    return [p.unflatten(-1, (-1, n.width)).transpose(1, 2) for p in made.chunk(3, -1)]


def unflattened_by_name(n: Any, made: Tensor) -> Any:
    sizes = 3, n.num_heads, n.width
    return torch.unflatten(made, dim=-1, sizes=sizes).permute(2, 0, 3, 1, 4)


TAKINGS = [
    all_in_one,
    all_in_one_reshaped,
    three_last,
    each_by_itself,
    unflattened,
    heads_left_open,
    heads_left_open_by_unflatten,
    unflattened_by_name,
]


@pytest.mark.parametrize("heads", [3, 4])
@pytest.mark.parametrize("taking", TAKINGS)
def test_heads_as_wide_as_they_are_many(taking: Taking, heads: int) -> None:
    """Four tokens, and three of queries, keys and values, are other numbers that coincide."""
    small, _ = proven(attention(taking, heads, heads), "qkv", heads, TOKENS)
    assert (small.num_heads, small.width) == (2, heads)
    assert (small.qkv.out_features, small.out.in_features) == (6 * heads, 2 * heads)
