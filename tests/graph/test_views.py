"""Views that part channels by numbers: sizes that coincide, plain ones, and ones that are left open."""

import math
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


def test_a_width_is_no_head_count_that_nothing_reads() -> None:
    """As many heads by a number in the code: their width is what may go, and no head goes."""

    def attend(n: Any, x: Tensor) -> Tensor:
        q, k, v = (part.view(*x.shape[:2], 4, -1).transpose(1, 2) for part in n.qkv(x).chunk(3, -1))
        mixed = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        out: Tensor = n.out(mixed.transpose(1, 2).flatten(2))
        return out

    torch.manual_seed(0)
    network = Wired(attend, qkv=nn.Linear(6, 48), out=nn.Linear(16, 3), num_heads=4).eval()
    small, _ = proven(network, "qkv", 4, TOKENS)
    assert (small.num_heads, small.qkv.out_features) == (4, 24)


@pytest.mark.parametrize(("width", "keys"), [(4, 2), (3, 2), (2, 4)])
def test_key_heads_that_a_view_leaves_open_follow_the_cut(width: int, keys: int) -> None:
    """Grouped queries: how often a key head is read is asked of two numbers that no view reads."""

    def attend(n: Any, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:2], -1, n.width).transpose(1, 2) for layer in (n.q, n.k, n.v)
        )
        times = n.num_heads // n.num_key_value_heads
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        out: Tensor = n.out(mixed.flatten(2))
        return out

    torch.manual_seed(0)
    layers = {name: nn.Linear(6, keys * width) for name in "kv"}
    layers |= {"q": nn.Linear(6, 4 * width), "out": nn.Linear(4 * width, 3)}
    numbers = {"num_heads": 4, "num_key_value_heads": keys, "width": width}
    small, _ = proven(Wired(attend, **layers, **numbers).eval(), "q", keys, TOKENS)
    assert (small.num_key_value_heads, small.num_heads) == (keys // 2, 2)


def shuffled(h: Tensor, groups: int) -> Tensor:
    return h.view(h.shape[0], groups, -1).transpose(1, 2).flatten(1)


def shuffled_by_shares(h: Tensor, groups: int) -> Tensor:
    parts = h.reshape(h.shape[0], groups, h.shape[1] // groups)
    return parts.transpose(1, 2).reshape(h.shape[0], -1)


def shuffled_by_unflatten(h: Tensor, groups: int) -> Tensor:
    parts: Tensor = h.unflatten(1, (groups, -1))
    return parts.transpose(1, 2).flatten(1)


def dealt_out(h: Tensor, groups: int) -> Tensor:
    return h.view(h.shape[0], -1, groups).transpose(1, 2).flatten(1)


def weighed_in_groups(h: Tensor, groups: int) -> Tensor:
    return h.view(h.shape[0], groups, -1).softmax(-1).flatten(1)


GROUPED = [shuffled, shuffled_by_shares, shuffled_by_unflatten, dealt_out, weighed_in_groups]


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("between", GROUPED)
def test_groups_by_a_number_in_the_code_lose_the_same_channels(
    between: Callable[[Tensor, int], Tensor], groups: int
) -> None:
    """As many groups as channels in each, or more: what is left open is what can change."""
    torch.manual_seed(0)
    layers = {"a": nn.Linear(6, 16), "out": nn.Linear(16, 3)}
    network = Wired(lambda n, x: n.out(between(n.a(x), groups)), **layers).eval()
    small, found = proven(network, "a", 16 // groups, FLAT)
    assert small.a.out_features == 8
    assert found.by_name["a"].channels_per_unit == groups


def test_a_number_of_groups_on_a_module_follows_the_cut() -> None:
    """Either of the two can change then; the longer does, so that units are small."""

    def between(n: Any, x: Tensor) -> Tensor:
        out: Tensor = n.out(shuffled(n.a(x), n.groups))
        return out

    torch.manual_seed(0)
    network = Wired(between, a=nn.Linear(6, 16), out=nn.Linear(16, 3), groups=8).eval()
    small, _ = proven(network, "a", 8, FLAT)
    assert (small.groups, small.a.out_features) == (4, 8)


@pytest.mark.parametrize("side", [2, 3])
def test_a_share_is_no_number_in_the_code(side: int) -> None:
    """Pixels shuffled by hand: what the product of two numbers on a module leaves of the channels."""

    def between(n: Any, x: Tensor) -> Tensor:
        h = n.a(x)
        batch, channels, height, width = h.shape
        share = channels // (n.side * n.side)
        runs = h.view(batch, share, n.side, n.side, height, width).permute(0, 1, 4, 2, 5, 3)
        out: Tensor = n.out(runs.reshape(batch, share, height * n.side, width * n.side))
        return out

    torch.manual_seed(0)
    network = Wired(between, a=nn.Conv2d(6, 4 * side**2, 1), out=nn.Conv2d(4, 3, 1), side=side)
    small, _ = proven(network.eval(), "a", 4, torch.randn(2, 6, 3, 3))
    assert (small.side, small.out.in_channels) == (side, 2)


def test_equal_parts_of_a_group_stay_equal() -> None:
    """Each of two groups is halved: of eight channels in it the same go from both halves."""

    def between(n: Any, x: Tensor) -> Tensor:
        gate, value = n.a(x).view(x.shape[0], n.groups, -1).chunk(2, -1)
        out: Tensor = n.out(torch.cat((gate.sigmoid(), value), -1).flatten(1))
        return out

    torch.manual_seed(0)
    network = Wired(between, a=nn.Linear(6, 16), out=nn.Linear(16, 3), groups=2).eval()
    _, found = proven(network, "a", 4, FLAT)
    for bits in range(1, 15):
        keep = np.array([bool(bits >> unit & 1) for unit in range(4)])
        assert certify(network, found, found.plan({"a": keep})).passed


def test_a_product_is_no_number_in_the_code() -> None:
    """Not even one of more terms than are followed: it changes with the channels that it counts."""

    def between(n: Any, x: Tensor) -> Tensor:
        h = n.a(x)
        batch, channels, height, width = h.shape
        halves = h.view(batch, -1, channels * height * width // 2).softmax(1)
        out: Tensor = n.out(halves.view(batch, channels, height, width))
        return out

    torch.manual_seed(0)
    network = Wired(between, a=nn.Conv2d(6, 8, 1), out=nn.Conv2d(8, 3, 1)).eval()
    proven(network, "a", 4, torch.randn(2, 6, 9, 9))


def test_one_query_head_for_each_key_head_is_no_number_in_the_code() -> None:
    """Grouped queries whose groups are of one head: the product of both counts is still one of heads."""

    def attend(n: Any, x: Tensor) -> Tensor:
        q, k, v = (n.get_submodule(name)(x) for name in "qkv")
        q, k, v = (p.view(*x.shape[:2], n.heads, n.width).transpose(1, 2) for p in (q, k, v))
        batch, heads, tokens, width = k.shape
        sizes = batch, heads, n.times, tokens, width
        k, v = (
            p[:, :, None].expand(sizes).reshape(batch, heads * n.times, tokens, width)
            for p in (k, v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        out: Tensor = n.out(mixed.flatten(2))
        return out

    torch.manual_seed(0)
    layers = {**{name: nn.Linear(6, 12) for name in "qkv"}, "out": nn.Linear(12, 3)}
    network = Wired(attend, **layers, heads=4, width=3, times=1).eval()
    small, _ = proven(network, "q", 4, TOKENS)
    assert (small.heads, small.width) == (2, 3)


COMPUTED: dict[str, Callable[[Tensor], int]] = {
    "int": lambda h: int(h.shape[1]) // 4,
    "shift": lambda h: h.shape[1] >> 2,
    "floor": lambda h: math.floor(h.shape[1] * 0.25),
    "length": lambda h: len(h[0]) // 4,
}


@pytest.mark.parametrize("share", COMPUTED.values(), ids=COMPUTED)
def test_a_number_that_forgot_what_it_was_computed_from_is_not_taken_for_one_in_the_code(
    share: Callable[[Tensor], int],
) -> None:
    """It looks like the 6 of a view by 6, which no cut can change: only a probe tells them apart."""

    def between(n: Any, x: Tensor) -> Tensor:
        h = n.a(x)
        means = h.view(h.shape[0], share(h), -1).mean(2)
        out: Tensor = n.out(means.repeat_interleave(4, 1))
        return out

    torch.manual_seed(0)
    network = Wired(between, a=nn.Linear(6, 24), out=nn.Linear(24, 3)).eval()
    small, found = proven(network, "a", 6, FLAT)
    assert small.a.out_features == 12
    assert found.by_name["a"].channels_per_unit == 4
