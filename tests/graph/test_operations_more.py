"""More operations between layers: what may be cut beside them, certified, and the numbers by hand."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from prunus.graph import Trace, certify, cut, trace
from prunus.meter import count_macs, count_params
from prunus.plan import BoolArray
from tests.helpers import Wired


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


class TokenMixer(nn.Module):
    """Mixes tokens by convolutions of one position, over all channels or those of heads alike."""

    def __init__(self, heads: int = 0) -> None:
        super().__init__()
        self.heads = heads
        kind = nn.Conv2d if heads else nn.Conv1d
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 3)
        self.mix, self.unmix = kind(6, 10, 1), kind(10, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        spread = hidden.unflatten(2, (self.heads, 4)) if self.heads else hidden
        mixed = self.unmix(self.mix(spread).relu())
        return cast("Tensor", self.last(hidden + (mixed.flatten(2) if self.heads else mixed)))


def test_a_kernel_of_one_position_leaves_the_sizes_beside_its_channels_open() -> None:
    for heads in (0, 4):
        network, x = TokenMixer(heads), drawn(2, 6, 16)
        found = proven(network, x)
        assert units(found) == {"first": heads or 16, "mix": 10}
        stays = np.arange(heads or 16) >= (heads or 16) // 4  # 12 channels
        by_hand = 6 * 16 * 12 + 2 * (10 * 6) * 12 + 6 * 12 * 3
        assert found.macs({"first": stays}) == by_hand


def test_a_kernel_that_slides_keeps_the_size_that_it_slides_over() -> None:
    sliding: list[dict[str, Any]] = [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": 1, "stride": 2},
    ]
    for settings in sliding:
        between = nn.Sequential(
            nn.Linear(16, 16), nn.Conv1d(6, 10, **settings), nn.Upsample(16), nn.Linear(16, 3)
        )
        found = proven(between, drawn(2, 6, 16))
        reason = next(g.refused for g in found.groups if g.axes[0].tensor == "0.weight")
        assert "slides over this dimension" in reason


class Turned(nn.Module):
    """Attention whose queries and keys are turned by complex numbers, as in the code of Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        turns = torch.polar(torch.ones(6, 2), torch.arange(12.0).view(6, 2))
        self.register_buffer("turns", turns, persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * cast("Tensor", self.turns)).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:2], self.heads, 4).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return cast("Tensor", self.o(mixed.transpose(1, 2).flatten(2)))


def test_heads_go_whole_where_they_are_turned_by_complex_numbers() -> None:
    network, x = Turned(), drawn(2, 6, 16)
    assert units(proven(network, x)) == {"q": 4}


class Pairs(nn.Module):
    """Channels in pairs, each a complex number that is multiplied by a learned one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 12), nn.Linear(12, 3)
        self.factors = nn.Parameter(drawn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.first(x).unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * torch.view_as_complex(self.factors))
        return cast("Tensor", self.last(turned.flatten(-2)))


def test_both_parts_of_a_complex_number_go_together() -> None:
    network, x = Pairs(), drawn(2, 16)
    found = proven(network, x)
    assert units(found) == {"first": 6}
    small = cut(network, found.plan({"first": np.arange(6) != 1}))
    stays = torch.arange(12) // 2 != 1
    assert torch.equal(cast("Any", small).first.weight, network.first.weight[stays])
    with torch.no_grad():
        network.last.weight[:, ~stays] = 0  # nothing reads the pair that went
    assert torch.allclose(small(x), network(x), atol=1e-6)


class Picked(nn.Module):
    """Channels of one or two layers are picked by one buffer that leaves some of them out."""

    def __init__(self, other: str) -> None:
        super().__init__()
        self.other = other
        self.a, self.b = nn.Linear(16, 8), nn.Linear(16, 8)
        self.after_a, self.after_b = nn.Linear(8, 2), nn.Linear(8, 2)
        self.c, self.d, self.words = nn.Linear(4, 2), nn.Linear(4, 2), nn.Embedding(9, 2)
        self.register_buffer("at", torch.tensor([1, 3, 4, 6]))

    def forward(self, x: Tensor) -> Tensor:
        a, b, at = self.a(x), self.b(x), cast("Tensor", self.at)
        more = {
            "layer": lambda: self.d(b[:, at]),
            "input": lambda: self.d(x[:, at]),
            "table": lambda: self.words(at).sum(0),
            "gathered": lambda: self.d(x.gather(1, at.expand(len(x), 4))),
            "shifted": lambda: self.d(b[:, at + 1]),
        }[self.other]()
        return cast("Tensor", self.c(a[:, at]) + more + self.after_a(a) + self.after_b(b))


def test_what_one_buffer_picks_from_is_cut_at_the_same_positions() -> None:
    network, x = Picked("layer"), drawn(2, 16)
    found = proven(network, x)
    assert units(found) == {"a": 4, "a#2": 4}  # those that it leaves out, those that it picks
    small = cast("Any", cut(network, found.plan({"a": np.arange(4) > 0})))
    assert small.at.tolist() == [0, 2, 3, 5]  # the first channel of both went
    assert (small.a.out_features, small.b.out_features) == (7, 7)


def test_a_buffer_that_also_picks_from_what_stays_is_not_renumbered() -> None:
    for other in ("input", "table", "gathered", "shifted"):
        network = Picked(other)
        found = proven(network, drawn(2, 16))
        assert units(found) == ({} if other == "shifted" else {"b": 8})


class Experts(nn.Module):
    """A layer out of two for each token; how tokens come to their experts and back is given."""

    def __init__(self, dispatch: str) -> None:
        super().__init__()
        self.dispatch = dispatch
        self.first, self.last = nn.Linear(16, 12), nn.Linear(12, 3)
        self.route = nn.Linear(16, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 12)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        weights, chosen = self.route(x).softmax(-1).topk(1)
        out = torch.zeros_like(hidden)
        for k, expert in enumerate(self.experts):
            mask = chosen[..., 0] == k
            if self.dispatch == "mask":
                out[mask] = expert(hidden[mask]) * weights[mask]
                continue
            flat, rows = out.flatten(0, 1), torch.where(mask.flatten())[0]
            mine = expert(hidden.flatten(0, 1)[rows]) * weights.flatten(0, 1)[rows]
            if self.dispatch == "index_add":
                flat.index_add_(0, rows, mine)
            elif self.dispatch == "index_put":
                flat.index_put_((rows,), mine, accumulate=True)
            else:
                flat.scatter_add_(0, rows[:, None].expand_as(mine), mine)
        return cast("Tensor", self.last(out))


def test_tokens_are_dealt_to_experts_and_put_back() -> None:
    for dispatch in ("mask", "index_add", "index_put", "scatter_add"):
        network, x = Experts(dispatch), drawn(2, 6, 16)
        found = proven(network, x)
        assert units(found) == {"first": 12, "experts.0.0": 8, "experts.1.0": 8}
        # By hand, with two channels cut and one unit of the first expert: rows go where they went.
        to_first = int((network.route(x[:1]).argmax(-1) == 0).sum())
        experts = to_first * 2 * 10 * 7 + (6 - to_first) * 2 * 10 * 8
        keep = {"first": np.arange(12) > 1, "experts.0.0": np.arange(8) > 0}
        assert found.macs(keep) == 6 * 16 * 10 + 6 * 16 * 2 + experts + 6 * 10 * 3


class Scattered(nn.Module):
    """Positions of one layer are put over those of another, as far as an index says."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.a, self.b, self.last = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        at = torch.arange(6).flip(0)[None, :, None].expand_as(a)[..., : self.channels]
        return cast("Tensor", self.last(a.scatter(1, at, b)))


def test_both_sides_of_a_scatter_are_cut_alike_or_stay() -> None:
    network, x = Scattered(8), drawn(2, 6, 16)
    found = proven(network, x)
    assert units(found) == {"a": 8}
    small = cast("Any", cut(network, found.plan({"a": np.arange(8) != 2})))
    assert (small.a.out_features, small.b.out_features) == (7, 7)
    assert units(proven(Scattered(5), x)) == {}  # the index is shorter than what it picks from


class Between(nn.Module):
    """``last(between(first(x)))``."""

    def __init__(self, first: nn.Module, between: Any, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last, self._between = first, last, between

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.last(self._between(self.first(x))))


def unpooled(h: Tensor) -> Tensor:
    pooled, at = functional.max_pool2d(h, 2, return_indices=True)
    return functional.max_unpool2d(pooled, at, [2, 2])


def folded(h: Tensor) -> Tensor:
    return functional.fold(functional.unfold(h, 3, padding=1), (6, 6), 3, padding=1)


def standardised(h: Tensor, dim: int) -> Tensor:
    deviation, mean = torch.std_mean(h, dim, keepdim=True)
    return (h - mean) / (deviation + 1)


# Over tokens, of which none goes: (a function of) [batch, tokens, channels].
OVER_TOKENS: dict[str, Any] = {
    "unfold": lambda h: h.unfold(1, 3, 1).mean(-1),
    "any": lambda h: h * (h > 1).any(1, keepdim=True),
    "all": lambda h: h * (h > -1).all(1)[:, None],
    "argmax": lambda h: h * h.argmax(1, keepdim=True),
    "argmin": lambda h: h * h.argmin(1)[:, None],
    "median": lambda h: h - h.median(1, keepdim=True)[0],
    "kthvalue": lambda h: h - h.kthvalue(2, 1)[0][:, None],
    "std_mean": lambda h: standardised(h, 1),
    "spectrum": lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1) * 0.5, h.shape[1], dim=1),
    "spectra": lambda h: torch.fft.fft2(h.unflatten(1, (2, 3)), dim=(1, -2)).imag.flatten(1, 2),
    "aminmax": lambda h: h - torch.aminmax(h, dim=1, keepdim=True)[0],
}
# Over channels: those that stay.
OVER_CHANNELS: dict[str, Any] = {
    "any over channels": lambda h: h * (h > 1).any(-1, keepdim=True),
    "std_mean over channels": lambda h: standardised(h, -1),
    "aminmax over channels": lambda h: h - torch.aminmax(h, dim=-1)[1][..., None],
}
POINTWISE: dict[str, Any] = {
    "heaviside": lambda h: torch.heaviside(h, h.exp()),
    "sinc": torch.sinc,
    "deg2rad": torch.deg2rad,
    "ldexp": lambda h: torch.ldexp(h, h.round()),
    "signbit": lambda h: h * torch.signbit(h),
    "logical_not_": lambda h: h * (h > 0).logical_not_(),
    "bitwise_or_": lambda h: h * (h > 1).bitwise_or_(h < -1),
    "complex": lambda h: torch.polar(h.exp(), h).mul(torch.complex(h, h)).conj().angle(),
}
FOLLOWED = OVER_TOKENS | OVER_CHANNELS | POINTWISE


@pytest.mark.parametrize("name", FOLLOWED)
def test_channels_beside_it_are_cut_and_certified(name: str) -> None:
    network = Between(nn.Linear(16, 8), FOLLOWED[name], nn.Linear(8, 3))
    assert units(proven(network, drawn(2, 6, 16), rounds=2)) == {"first": 8}


class GlobalFilter(nn.Module):
    """As in GFNet: a weight for every frequency and channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, 8, 2, generator=torch.Generator()))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
        turned = spectrum * torch.view_as_complex(self.weight)
        return cast("Tensor", torch.fft.irfft2(turned, s=x.shape[1:3], dim=(1, 2), norm="ortho"))


def test_channels_that_a_filter_of_frequencies_weighs_are_cut() -> None:
    network = nn.Sequential(nn.Linear(5, 8), GlobalFilter(), nn.Linear(8, 3))
    found, stays = proven(network, x := drawn(2, 6, 6, 5)), [0, 3, 4, 6]
    assert units(found) == {"0": 8}
    small = cut(network, found.plan({"0": np.isin(np.arange(8), stays)}))
    first, last = cast("nn.Linear", network[0]), cast("nn.Linear", network[2])
    weight = cast("GlobalFilter", network[1]).weight[:, :, stays]
    spectrum = torch.fft.rfft2(first(x)[..., stays], dim=(1, 2))
    mixed = torch.fft.irfft2(spectrum * torch.complex(*weight.unbind(-1)), s=(6, 6), dim=(1, 2))
    by_hand = functional.linear(mixed, last.weight[:, stays], last.bias)
    assert torch.allclose(small(x), by_hand, atol=1e-5)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_columns_of_summed_rows_are_channels(mode: str) -> None:
    network = nn.Sequential(nn.EmbeddingBag(20, 8, mode=mode, padding_idx=0), nn.Linear(8, 3))
    rows = torch.tensor([[3, 7, 7, 0], [19, 1, 0, 0]])
    found = proven(network, rows)
    assert units(found) == {"0": 8}
    small: Any = cut(network, found.plan({"0": np.arange(8) > 4}))
    assert (small[0].embedding_dim, small[0].num_embeddings) == (3, 20)
    table, last = cast("Tensor", network[0].weight)[:, 5:], cast("nn.Linear", network[1])
    taken = [table[[3, 7, 7]], table[[19, 1]]]
    bags = torch.stack([t.amax(0) if mode == "max" else getattr(t, mode)(0) for t in taken])
    by_hand = functional.linear(bags, last.weight[:, 5:], last.bias)
    assert torch.allclose(small(rows), by_hand, atol=1e-6)


@pytest.mark.parametrize("between", [unpooled, folded])
def test_images_are_put_together_channel_by_channel(between: Any) -> None:
    network = Between(nn.Conv2d(3, 8, 1), between, nn.Conv2d(8, 3, 1))
    assert units(proven(network, drawn(2, 3, 6, 6))) == {"first": 8}


def test_channels_of_which_one_is_told_by_number_stay() -> None:
    for told in (
        lambda h: h * h.argmax(-1, keepdim=True),
        lambda h: h - h.median(-1, keepdim=True)[0],
    ):
        network = Between(nn.Linear(16, 8), told, nn.Linear(8, 3))
        assert units(trace(network.eval(), drawn(2, 6, 16))) == {}


def test_channels_that_a_spectrum_is_made_of_stay() -> None:
    network = Between(nn.Linear(16, 8), lambda h: torch.fft.fft(h).real, nn.Linear(8, 3))
    found = trace(network.eval(), drawn(2, 6, 16), verify=False)
    assert found.by_name["first"].refused == "fft in 'the network': mixes positions"


def test_rows_that_are_folded_into_a_channel_go_together() -> None:
    """Four channels of 3 by 3 positions each."""

    def folding(h: Tensor) -> Tensor:
        return functional.fold(h, (4, 4), 3, padding=1)

    network = Between(nn.Conv1d(3, 36, 1), folding, nn.Conv2d(4, 3, 1))
    assert units(proven(network, drawn(2, 3, 16))) == {"first": 4}


@pytest.mark.parametrize("way", ["index_add", "index_copy", "scatter_add"])
def test_what_is_put_into_rows_has_their_channels(way: str) -> None:
    at = torch.tensor([4, 0, 2])

    def wiring(n: Any, x: Tensor) -> Tensor:
        rows, values = n.a(x), n.b(x[:, :3])
        where = at[:, None].expand_as(values) if way == "scatter_add" else at
        out: Tensor = n.o(getattr(rows, way)(1, where, values))
        return out

    network = Wired(wiring, a=nn.Linear(16, 8), b=nn.Linear(16, 8), o=nn.Linear(8, 3))
    (group,) = proven(network, drawn(2, 6, 16)).cuttable
    assert {axis.tensor for axis in group.axes if axis.role == "out"} >= {"a.weight", "b.weight"}


def test_what_is_put_into_rows_and_cannot_be_cut_keeps_them_whole() -> None:
    def wiring(n: Any, x: Tensor) -> Tensor:
        out: Tensor = n.o(n.a(x).index_add(1, torch.tensor([4, 0, 2]), x[:, :3]))
        return out

    network = Wired(wiring, a=nn.Linear(16, 16), o=nn.Linear(16, 3)).eval()
    refused = trace(network, drawn(2, 6, 16)).by_name["a"].refused
    assert refused == "index_add in 'the network': picks positions by number"


def test_channels_that_windows_slide_over_stay() -> None:
    network = Between(nn.Linear(16, 8), lambda h: h.unfold(-1, 3, 1).mean(-1), nn.Linear(6, 3))
    refused = trace(network.eval(), drawn(2, 6, 16)).groups[0].refused
    assert refused == "unfold in 'the network': slides over it"


def test_channels_that_a_mask_names_one_by_one_stay() -> None:
    def blanked(h: Tensor) -> Tensor:
        out = h.clone()
        out[:, torch.ones(6, 8, dtype=torch.bool)] = 0.5
        return out

    network = Between(nn.Linear(16, 8), blanked, nn.Linear(8, 3))
    refused = trace(network.eval(), drawn(2, 6, 16)).groups[0].refused
    assert refused == "index_put in 'the network': puts values in by number"


def test_a_sampled_code_stays_and_what_lies_around_it_is_cut() -> None:
    def sampled(h: Tensor) -> Tensor:
        return functional.gumbel_softmax(h, dim=-1)

    network = nn.Sequential(
        Between(nn.Linear(16, 8), torch.relu, nn.Linear(8, 5)),
        Between(nn.Identity(), sampled, nn.Linear(5, 8)),
        nn.ReLU(),
        nn.Linear(8, 3),
    )
    assert units(proven(network, drawn(2, 16))) == {"0.first": 8, "1.last": 8}


class Blurred(nn.Module):
    """A buffer slides over each channel by itself; the number of channels is an attribute or a size."""

    def __init__(self, known: str) -> None:
        super().__init__()
        self.known, self.channels = known, 8
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1)
        self.register_buffer("kernel", drawn(8, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        groups = {"attribute": self.channels, "size": h.shape[1], "written": 8}[self.known]
        kernel = cast("Tensor", self.kernel)
        return cast("Tensor", self.last(functional.conv2d(h, kernel, stride=2, groups=groups)))


def test_a_number_of_groups_off_a_layer_follows_the_cut() -> None:
    for known in ("attribute", "size"):
        network, x = Blurred(known), drawn(2, 3, 8, 8)
        found = proven(network, x)
        assert units(found) == {"first": 8}
        small = cast("Any", cut(network, found.plan({"first": np.arange(8) > 2})))
        assert torch.equal(small.kernel, cast("Tensor", network.kernel)[3:])
        assert small.channels == (5 if known == "attribute" else 8)
    assert "expected weight to be at least 8" in trace(Blurred("written"), x).groups[0].refused
