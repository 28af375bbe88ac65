"""Operations that networks have between their layers: what may be cut beside them, certified."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.errors import GraphError, InputError
from prunus.graph import certify, cut, trace
from prunus.meter import count_macs, count_params


class Between(nn.Module):
    """``last(between(first(x)))``."""

    def __init__(self, first: nn.Module, between: Callable[[Tensor], Tensor], last: nn.Module):
        super().__init__()
        self.first, self.last, self._between = first, last, between

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.last(self._between(self.first(x))))


def linear(between: Callable[[Tensor], Tensor], width: int = 8, read: int = 8) -> nn.Module:
    return Between(nn.Linear(12, width), between, nn.Linear(read, 3))


def images(between: Callable[[Tensor], Tensor], width: int = 8, read: int = 8) -> nn.Module:
    return Between(nn.Conv2d(3, width, 1), between, nn.Conv2d(read, 3, 1))


def volumes(between: Callable[[Tensor], Tensor]) -> nn.Module:
    return Between(nn.Conv3d(2, 6, 1), between, nn.Conv3d(6, 3, 1))


FLAT, TOKENS = (4, 12), (3, 5, 12)
IMAGES, VOLUMES = (2, 3, 6, 6), (2, 2, 4, 4, 4)

# Network, shape of its input, units of the group of its first layer.
CASES: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "glu": (linear(functional.glu, 16), FLAT, 8),
    "normalize": (linear(lambda h: functional.normalize(h, dim=-1)), FLAT, 8),
    "expand_as": (linear(lambda h: h * h.mean(1, keepdim=True).expand_as(h)), FLAT, 8),
    "hardshrink": (linear(functional.hardshrink), FLAT, 8),
    "log2": (linear(lambda h: h.abs().add(1).log2()), FLAT, 8),
    "logsumexp": (linear(lambda h: h + torch.logsumexp(h, 1, keepdim=True)), TOKENS, 8),
    "cumsum": (linear(lambda h: h.cumsum(1)), TOKENS, 8),
    "sort": (linear(lambda h: h.sort(dim=1, descending=True)[0]), TOKENS, 8),
    "topk": (linear(lambda h: h.topk(2, dim=1)[0]), TOKENS, 8),
    "layer norm": (nn.Sequential(), TOKENS, 0),  # below: it needs a parameter
    "pixel shuffle": (images(nn.PixelShuffle(2), 16, 4), IMAGES, 4),
    "pixel unshuffle": (images(nn.PixelUnshuffle(2), 4, 16), IMAGES, 4),
    "channel shuffle": (images(nn.ChannelShuffle(4)), IMAGES, 2),
    "rot90": (images(lambda h: torch.rot90(h, 1, [2, 3])), IMAGES, 8),
    "unflatten": (
        nn.Sequential(nn.Linear(12, 24), nn.Unflatten(1, (6, 2, 2)), nn.Conv2d(6, 3, 1)),
        FLAT,
        6,
    ),
    "trilinear": (volumes(nn.Upsample(scale_factor=2, mode="trilinear")), VOLUMES, 6),
    "nearest exact": (images(nn.Upsample(scale_factor=2, mode="nearest-exact")), IMAGES, 8),
    "max pool to a size": (volumes(nn.AdaptiveMaxPool3d(2)), VOLUMES, 6),
    "replication pad": (volumes(nn.ReplicationPad3d(1)), VOLUMES, 6),
    "depthwise transposed": (images(nn.ConvTranspose2d(8, 8, 2, 2, groups=8)), IMAGES, 8),
    "two outputs a channel": (
        images(nn.ConvTranspose2d(8, 16, 2, 2, groups=8), read=16),
        IMAGES,
        8,
    ),
    "cell": (linear(nn.GRUCell(8, 8)), FLAT, 8),
}


class Normed(nn.Module):
    """A layer norm as ConvNeXt's authors wrote it: its size is an attribute, told to a function."""

    def __init__(self) -> None:
        super().__init__()
        self.normalized_shape = (8,)
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias)


CASES["layer norm"] = (linear(Normed()), TOKENS, 8)


@pytest.mark.parametrize("name", CASES)
def test_channels_beside_it_are_cut_and_certified(name: str) -> None:
    made, shape, units = CASES[name]
    network = made.eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = trace(network, x)
    first = found.groups[0]
    assert (first.refused, first.units) == ("", units)
    for kept in (units // 2, 1):
        keep = {g.name: np.arange(g.units) < min(kept, g.units) for g in found.cuttable}
        plan = found.plan(keep)
        assert certify(network, found, plan, x).passed
        small = cut(network, plan)
        assert count_macs(small, x[:1]).macs == found.macs(plan.channels)
        assert count_params(small) == found.params(plan.channels)


def test_a_cell_knows_its_new_input_size() -> None:
    network = CASES["cell"][0].eval()
    found = trace(network, torch.randn(4, 12))
    small = cut(network, found.plan({found.groups[0].name: np.arange(8) < 5}))
    assert cast("Any", small)._between.input_size == 5


class LinearAttention(nn.Module):
    """Softmax over tokens and over a head's width, each a part of one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            layer(x).view(b, n, self.heads, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = q.softmax(-1) @ (k.softmax(-2).transpose(-1, -2) @ v)
        return cast("Tensor", self.out(mixed.transpose(1, 2).reshape(b, n, -1)))


def test_heads_go_whole_where_a_softmax_runs_within_them() -> None:
    network, x = LinearAttention().eval(), torch.randn(2, 5, 12)
    found = trace(network, x)
    assert [(g.name, g.units) for g in found.cuttable] == [("q", 3)]
    plan = found.plan({"q": np.array([True, False, True])})
    assert certify(network, found, plan).passed
    assert cast("Any", cut(network, plan)).heads == 2


class TwoHeads(nn.Module):
    """A second head in train mode alone (deep supervision)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(12, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.c, self.d = nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        hidden = self.a(x).relu()
        out = self.b(hidden) + self.d(self.c(x).relu())
        return (out, self.aux(hidden)) if self.training else out


def test_what_only_train_mode_reads_is_refused_by_name_and_mode() -> None:
    network, x = TwoHeads().eval(), torch.randn(4, 12)
    found = trace(network, x)
    reasons = {g.name: g.refused for g in found.groups}
    assert reasons["a"].startswith("probe failed: the network cut at a does not run: in train mode")
    assert reasons["c"] == ""
    assert certify(network, found, found.plan({"c": np.arange(6) < 3})).passed
    assert not network.training


class Nested(nn.Module):
    """Reads a tensor in a dictionary, and works in place on it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, extra: dict[str, Tensor]) -> Tensor:
        inner = self.b(self.a(extra["y"].mul_(1.5)).relu())
        return cast("Tensor", self.b(self.a(x).relu()) + inner)


def test_inputs_within_inputs_are_sampled_cast_and_left_alone() -> None:
    x, y = torch.randn(4, 12), torch.randn(4, 12)
    before, network = y.clone(), Nested().eval()
    found = trace(network, (x, {"y": y}))
    assert torch.equal(y, before)
    assert found.macs({}) == 2 * (12 * 8 + 8 * 3)  # for one sample, by hand
    double = trace(Nested().eval().double(), (x.double(), {"y": y.double()}))
    assert next(g.refused for g in double.groups) == ""
    assert certify(network, found, found.plan({"a": np.arange(8) < 3}), (x, {"y": y})).passed


class Noisy(nn.Module):
    """Draws random numbers in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mu, self.b, self.c = (
            nn.Linear(12, 16),
            nn.Linear(16, 4),
            nn.Linear(4, 16),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mu(self.a(x).relu())
        return cast("Tensor", self.c(self.b(mean + torch.randn_like(mean)).relu()))


def test_a_network_that_draws_numbers_is_compared_on_the_same_ones() -> None:
    network, x = Noisy().eval(), torch.randn(3, 12)
    state = torch.get_rng_state()
    found = trace(network, x)
    assert torch.equal(torch.get_rng_state(), state)
    # Of the sampled code itself a cut network would draw fewer numbers: it stays.
    assert [g.name for g in found.cuttable] == ["a", "b"]
    keep = {g.name: np.arange(g.units) < 5 for g in found.cuttable}
    assert certify(network, found, found.plan(keep)).passed


class Rotated(nn.Module):
    """Turns channels by complex numbers, which must stay complex in the certificate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 3)
        self.register_buffer("turn", torch.polar(torch.ones(6), torch.arange(6.0)))

    def forward(self, x: Tensor) -> Tensor:
        turn = cast("Tensor", self.turn)
        assert turn.is_complex()
        turned = torch.view_as_real(torch.view_as_complex(x.unflatten(1, (6, 2))) * turn)
        return cast("Tensor", self.b(self.a(turned.flatten(1)).relu()))


def test_complex_numbers_stay_complex() -> None:
    network, x = Rotated().eval(), torch.randn(3, 12)
    found = trace(network, x)
    assert found.groups[0].refused == ""
    assert certify(network, found, found.plan({"a": np.arange(8) < 5})).passed


def test_outputs_as_many_as_channels_are_refused_not_a_traceback() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> list[Tensor]:
            hidden = self.a(x)
            return [self.b(hidden).sum(1) for _ in range(hidden.shape[1])]

    assert "disagree" in trace(Odd().eval(), torch.randn(2, 12)).groups[0].refused


def test_what_cannot_be_copied_is_told_with_a_remedy() -> None:
    import torch.nn.utils.prune as torch_prune

    network = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 3)).eval()
    torch_prune.l1_unstructured(network[0], "weight", 0.5)
    with pytest.raises(
        GraphError, match=r"cannot be copied .*torch\.nn\.utils\.prune\.remove does"
    ):
        trace(network, torch.randn(2, 12))
    torch_prune.remove(network[0], "weight")
    assert trace(network, torch.randn(2, 12)).groups[0].refused == ""


class Padded(nn.Module):
    """An encoder of torch.nn that packs padded batches."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.words = nn.Embedding(50, 16, padding_idx=0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.encoder(self.words(input_ids), src_key_padding_mask=input_ids == 0)
        return cast("Tensor", self.out(hidden[:, 0]))


def test_padded_batches_of_an_encoder_are_followed() -> None:
    ids = torch.randint(1, 50, (4, 9), generator=torch.Generator().manual_seed(0))
    ids[1, 5:] = 0
    network = Padded().eval()
    found = trace(network, {"input_ids": ids})
    names = [g.name for g in found.cuttable]
    assert {"encoder.layers.0.linear1", "encoder.layers.1.linear1"} <= set(names)
    keep = {g.name: np.arange(g.units) < max(1, g.units // 2) for g in found.cuttable}
    assert certify(network, found, found.plan(keep)).passed
    assert network.encoder.use_nested_tensor  # of the user's own network


def test_parameters_over_one_memory_are_refused_by_name() -> None:
    one, two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    network = nn.Sequential(one, two)
    two.weight = nn.Parameter(one.weight.data)
    with pytest.raises(InputError, match=r"'0\.weight' and '1\.weight' share their memory"):
        trace(network, torch.randn(2, 8))
    two.weight = one.weight
    trace(network, torch.randn(2, 8))
