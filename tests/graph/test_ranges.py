"""Ranges, splits and views whose sizes are computed from numbers, and channels taken one by one."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.graph import Trace, certify, cut, trace
from prunus.meter import count_macs, count_params
from tests.helpers import Wired

TOKENS = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
FLAT = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))

Wiring = Callable[[Any, Tensor], Tensor]


def between(wiring: Wiring, made: int, read: int, **numbers: int) -> nn.Module:
    """``out(wiring(first(x)))``, for a wiring that reads numbers on the module."""
    network = Wired(
        lambda n, x: n.out(wiring(n, n.first(x))),
        first=nn.Linear(16, made),
        out=nn.Linear(read, 3),
        **numbers,
    )
    return network.eval()


def refusals(found: Trace) -> dict[str, str]:
    return {g.name: g.refused for g in found.groups if g.refused and not g.protected}


def gated(value: Tensor, gate: Tensor) -> Tensor:
    return value * gate.sigmoid()


def swapped(*parts: Tensor) -> Tensor:
    """A network with other numbers in it puts other channels there."""
    return torch.cat([part.mul(k + 1.0) for k, part in enumerate(reversed(parts))], -1)


def shift(n: Any, h: Tensor) -> Tensor:
    """Temporal shift: a quarter of the channels goes back, one goes on, half stays."""
    fold = h.shape[-1] // 4
    out = torch.zeros_like(h)
    out[:, :-1, :fold] = h[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = h[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = h[:, :, 2 * fold :]
    return out


def rest(n: Any, h: Tensor) -> Tensor:
    half = h.size(-1) // 2
    return gated(h.narrow(-1, 0, half), torch.narrow(h, dim=2, start=half, length=half))


def keys_without_bias(n: Any, x: Tensor) -> Tensor:
    """As torchvision's SwinV2: one bias for all three, a third of it at zero."""
    bias = n.qkv.bias.clone()
    third = bias.numel() // 3
    bias[third : 2 * third].zero_()
    q, k, v = functional.linear(x, n.qkv.weight, bias).chunk(3, -1)
    out: Tensor = n.out(gated(v, q * k))
    return out


def thirds(n: Any, h: Tensor) -> Tensor:
    q, k, v = h.view(*h.shape[:2], -1, 3 * n.d).chunk(3, -1)
    return gated(v, q * k).flatten(2)


def linear_attention(n: Any, x: Tensor) -> Tensor:
    """As EfficientViT's: a column of ones beside the values counts what the keys sum to."""
    q, k, v = n.q(x).relu(), n.k(x).relu(), functional.pad(n.v(x), (0, 1), value=1.0)
    mixed = q @ (k.transpose(1, 2) @ v)
    out: Tensor = n.out(mixed[..., :-1] / (mixed[..., -1:] + 1))
    return out


# Network, units of its groups that can be cut.
FOLLOWED: dict[str, tuple[nn.Module, list[int]]] = {
    "an attribute": (
        between(lambda n, h: gated(h[..., : n.d], h[..., n.d :]), 24, 12, d=12),
        [12],
    ),
    "half of a shape": (
        between(lambda _, h: gated(h[..., : h.shape[-1] // 2], h[..., h.shape[-1] // 2 :]), 24, 12),
        [12],
    ),
    "half of an attribute": (
        between(lambda n, h: gated(h[..., : n.d // 2], h[..., n.d // 2 :]), 24, 12, d=24),
        [12],
    ),
    "thirds": (
        between(
            lambda n, h: gated(h[..., : n.d], h[..., n.d : 2 * n.d]) + h[..., n.d * 2 :],
            24,
            8,
            d=8,
        ),
        [8],
    ),
    "unequal parts": (
        between(lambda n, h: swapped(h[..., : n.d], h[..., n.d :]), 24, 24, d=7),
        [24],
    ),
    "a sum": (
        between(
            lambda n, h: swapped(h[..., : n.p], h[..., n.p : n.p + n.q], h[..., n.p + n.q :]),
            24,
            24,
            p=5,
            q=8,
        ),
        [24],
    ),
    "the size of another": (
        Wired(
            lambda n, x: n.out(n.a(x) + n.b(x)[..., : n.a(x).shape[-1]]),
            a=nn.Linear(16, 8),
            b=nn.Linear(16, 24),
            out=nn.Linear(8, 3),
        ).eval(),
        [8],
    ),
    "overlap": (
        between(lambda n, h: swapped(h[..., : n.d], h[..., n.e :]), 24, 28, d=16, e=12),
        [24],
    ),
    "up to the end by number": (
        between(lambda n, h: gated(h[..., : n.d], h[..., n.d : 24]), 24, 12, d=12),
        [12],
    ),
    "narrow": (between(rest, 24, 12), [12]),
    "tensor_split": (between(lambda _, h: gated(*h.tensor_split(2, -1)), 24, 12), [12]),
    "tensor_split by an attribute": (
        between(lambda n, h: swapped(*h.tensor_split([n.d], dim=-1)), 24, 24, d=9),
        [24],
    ),
    "split by sums": (
        between(lambda n, h: swapped(*h.split([2 * n.p, n.p + n.q, n.q], -1)), 24, 24, p=4, q=6),
        [10],
    ),
    "written in place": (between(shift, 16, 16), [4]),
    "from the end": (
        between(lambda n, h: gated(h[..., : -n.d], h[..., -n.d :]), 24, 12, d=12),
        [12],
    ),
    "unequal parts from the end": (
        between(lambda n, h: swapped(h[..., : -n.d], h[..., -n.d :]), 24, 24, d=7),
        [24],
    ),
    "less a number": (
        between(lambda n, h: gated(h[..., : n.w - n.d], h[..., -n.d :]), 24, 12, w=24, d=12),
        [12],
    ),
    "less a share": (
        between(
            lambda n, h: swapped(h[..., : n.w - n.w // 4], h[..., -(n.w // 4) :]), 24, 24, w=24
        ),
        [6],
    ),
    "split by what is left": (
        between(lambda n, h: swapped(*h.split([n.d, n.w - n.d], -1)), 24, 24, w=24, d=7),
        [24],
    ),
    "split by what is left, first": (
        between(lambda n, h: swapped(*h.split([n.w - n.d, n.d], -1)), 24, 24, w=24, d=7),
        [24],
    ),
    "split by what two leave": (
        between(
            lambda n, h: swapped(*h.split([n.p, n.w - n.p - n.q, n.q], -1)),
            24,
            24,
            w=24,
            p=5,
            q=8,
        ),
        [24],
    ),
    "split by what is left of a shape": (
        between(lambda n, h: swapped(*h.split([n.d, h.shape[-1] - n.d], -1)), 24, 24, d=7),
        [24],
    ),
    "split by what a share leaves": (
        between(
            lambda _, h: swapped(*h.split([h.size(-1) // 4, h.size(-1) - h.size(-1) // 4], -1)),
            24,
            24,
        ),
        [6],
    ),
    "split into parts of a share": (
        between(lambda n, h: gated(*h.split(n.w // 2, -1)), 24, 12, w=24),
        [12],
    ),
    "split by a number of parts": (
        between(lambda n, h: gated(*h.split(n.w // n.paths, -1)), 24, 12, w=24, paths=2),
        [12],
    ),
    "a third of a vector": (
        Wired(keys_without_bias, qkv=nn.Linear(16, 24), out=nn.Linear(8, 3)).eval(),
        [8],
    ),
    "a view of thirds": (between(thirds, 48, 16, d=4), [4]),
    "a view of two halves": (
        between(lambda n, h: h.view(-1, 2 * n.d).view(*h.shape), 24, 24, d=12),
        [12],
    ),
    "a view of halves that were pairs": (
        between(
            lambda n, h: h.view(*h.shape[:2], n.d, 2).flatten(2).view(*h.shape[:2], 2 * n.d),
            24,
            24,
            d=12,
        ),
        [12],
    ),
    "but for a column of ones": (
        Wired(
            linear_attention,
            **{name: nn.Linear(16, 8) for name in "qk"},
            v=nn.Linear(16, 12),
            out=nn.Linear(12, 3),
        ).eval(),
        [8, 12],
    ),
    "behind a column of zeros": (
        between(lambda _, h: functional.pad(h, (2, 0))[..., 2:], 24, 24),
        [24],
    ),
    "narrow to the end": (
        between(
            lambda n, h: gated(h.narrow(-1, n.w - n.d, n.d), h.narrow(-1, 0, n.w - n.d)),
            24,
            12,
            w=24,
            d=12,
        ),
        [12],
    ),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_ends_of_ranges_follow_a_cut(name: str) -> None:
    network, units = FOLLOWED[name]
    found = trace(network, TOKENS)
    assert [g.units for g in found.cuttable][: len(units)] == units
    draw = np.random.default_rng(0)
    for n in range(4):
        keep = {}
        for group in found.cuttable:
            kept = 1 if n == 0 else int(draw.integers(1, group.units + 1))
            keep[group.name] = np.isin(np.arange(group.units), draw.permutation(group.units)[:kept])
        plan = found.plan(keep)
        assert certify(network, found, plan).passed
        small = cut(network, plan)
        assert count_macs(small, TOKENS[:1]).macs == found.macs(plan.channels)
        assert count_params(small) == found.params(plan.channels)


def test_an_end_is_as_many_as_stay_before_it() -> None:
    network = FOLLOWED["unequal parts"][0]
    found = trace(network, TOKENS)
    keep = np.ones(24, dtype=bool)
    keep[[0, 3, 7, 20, 21]] = False  # two of the seven before the end, three behind it
    small: Any = cut(network, found.plan({"first": keep}))
    assert (small.d, small.first.out_features) == (5, 19)


def test_what_is_left_follows_both_numbers() -> None:
    network = FOLLOWED["split by what is left"][0]
    found = trace(network, TOKENS)
    keep = np.ones(24, dtype=bool)
    keep[[0, 3, 7, 20, 21]] = False  # two of the first seven, three of the seventeen that are left
    small: Any = cut(network, found.plan({"first": keep}))
    assert (small.d, small.w) == (5, 19)


# What no plan can write down, or nothing tells the origin of.
UNCLEAR: dict[str, nn.Module] = {
    "plain numbers": between(lambda _, h: gated(h[..., :12], h[..., 12:]), 24, 12),
    "but for more than a column of ones": between(
        lambda _, h: functional.pad(h, (0, 1))[..., :-2], 24, 23
    ),
    "behind less than was added": between(lambda _, h: functional.pad(h, (2, 0))[..., 3:], 24, 23),
    "steps": between(lambda _, h: gated(h[..., ::2], h[..., 1::2]), 24, 12),
    "steps up to an attribute": between(lambda n, h: h[..., : n.d : 2], 24, 6, d=12),
    "less a number in the code": between(lambda n, h: h[..., : n.d - 1], 24, 11, d=12),
    "less two numbers": between(lambda n, h: h[..., : n.d - n.p - n.q], 24, 11, d=24, p=5, q=8),
    "what another is less than": between(
        lambda n, h: swapped(*h.split([n.p, n.d - n.q, 5], -1)), 24, 24, d=24, p=7, q=12
    ),
    "a plain start": between(lambda n, h: h[..., 1 : n.d], 24, 11, d=12),
    "no whole share": between(lambda _, h: h[..., : h.shape[-1] // 5], 24, 4),
    "more than a share": between(lambda n, h: h[..., : n.d + 1], 24, 13, d=12),
    "a split by a number": between(lambda n, h: swapped(*h.split([2 * n.d, 4], -1)), 24, 24, d=10),
    "unequal parts by number": between(lambda _, h: swapped(*h.tensor_split([9], -1)), 24, 24),
    "parts that are not equal": between(lambda _, h: h.tensor_split(4, -1)[3], 25, 6),
    "a narrow range by number": between(lambda n, h: h.narrow(-1, n.d, 4), 24, 4, d=12),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_ends_of_unclear_origin_are_refused_with_the_remedy(name: str) -> None:
    found = trace(UNCLEAR[name], TOKENS, verify=False)
    said = set(refusals(found).values())
    assert any(
        re.search(r"use (chunk, or an attribute|an attribute|attributes) \(self\.n\)", s)
        for s in said
    )
    for group in found.cuttable:  # what is left is sound all the same
        keep = np.arange(group.units) < max(1, group.units // 2)
        assert certify(UNCLEAR[name], found, found.plan({group.name: keep})).passed


def test_a_number_that_also_cuts_what_stays_is_not_changed() -> None:
    """The same attribute cuts the input, of which nothing may go."""
    network = Wired(
        lambda n, x: n.out(n.first(x)[..., : n.d] + n.second(x[..., : n.d])),
        d=8,
        first=nn.Linear(16, 12),
        second=nn.Linear(8, 8),
        out=nn.Linear(8, 3),
    ).eval()
    found = trace(network, TOKENS, verify=False)
    assert "'d' of '' serves several sizes" in refusals(found).values()


def test_channels_taken_one_by_one_stay() -> None:
    """A dim of size 1 carries no labels: nothing else would tell that they are read."""
    network = between(
        lambda n, h: gated(h[..., : n.d], h[..., n.d : 2 * n.d]) * h[..., 2 * n.d :], 24, 22, d=1
    )
    assert [g.units for g in trace(network, TOKENS, verify=False).cuttable] == [22]


def test_a_grid_is_made_for_any_number_of_channels() -> None:
    class Warped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
            self.register_buffer("turn", torch.tensor([[[0.8, 0.2, 0.1], [-0.2, 0.8, 0.0]]]))

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            turn = self.get_buffer("turn").expand(x.shape[0], 2, 3)
            grid = functional.affine_grid(turn, h.size(), align_corners=False)
            out: Tensor = self.b(functional.grid_sample(h, grid, align_corners=False))
            return out

    network, x = Warped().eval(), torch.randn(2, 3, 8, 8)
    found = trace(network, x)
    assert [(g.name, g.units) for g in found.cuttable] == [("a", 8)]
    for kept in (5, 1):
        plan = found.plan({"a": np.arange(8) < kept})
        assert certify(network, found, plan).passed
        assert count_macs(cut(network, plan), x[:1]).macs == found.macs(plan.channels)


def test_a_channel_that_is_picked_for_its_shape_alone_holds_nothing() -> None:
    def wiring(n: Any, h: Tensor) -> Tensor:
        positions = h[:, :, -1]
        return h * torch.arange(positions.shape[1])[:, None]

    network = between(wiring, 8, 8)
    found = trace(network, TOKENS)
    assert [g.units for g in found.cuttable] == [8]
    assert certify(network, found, found.plan({"first": np.arange(8) < 3})).passed
    for reading in (
        lambda _, h: h * h[:, :, -1, None],
        lambda _, h: h * (1 + abs(h[:, 0, 0].tolist()[0])),  # no operation tells of it
    ):
        read = trace(between(reading, 8, 8), TOKENS)
        assert refusals(read) == {"first": "select in 'the network': picks positions by number"}


def test_what_is_empty_may_be_stacked() -> None:
    def wiring(n: Any, h: Tensor) -> Tensor:
        nothing = torch.stack([h.new_zeros(0, 4), h.new_zeros(0, 4)])
        return h + nothing.sum()

    assert [g.units for g in trace(between(wiring, 8, 8), TOKENS).cuttable] == [8]
