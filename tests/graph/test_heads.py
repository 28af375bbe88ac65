"""Heads of attention, as libraries write it: what lies over all of them, and what parts them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.graph import Trace, certify, cut, trace
from prunus.meter import count_macs, count_params
from tests.helpers import Wired

HEADS, WIDTH, TOKENS, WINDOWS = 4, 3, 5, 2
X = torch.randn(2, WINDOWS * TOKENS, 6, generator=torch.Generator().manual_seed(0))
KEEP = np.array([True, False, False, True])


def cut_heads(network: nn.Module, name: str) -> tuple[Any, Trace]:
    """Two of four heads cut; the answers must be those of the dense network that reads no other.

    The witness knows nothing of labels: it sets to zero what ``out`` makes of the removed heads.
    """
    found = trace(network, X)
    assert found.by_name[name].units == HEADS and not found.by_name[name].refused
    plan = found.plan({name: KEEP})
    certificate = certify(network, found, plan)
    assert certificate.passed and certificate.train_difference is not None
    small: Any = cut(network, plan)
    assert count_macs(small, X[:1]).macs == found.macs(plan.channels)
    assert count_params(small) == found.params(plan.channels)
    dense: Any = network
    with torch.no_grad():
        expected = functional.linear(
            dense.mixed(X) * torch.from_numpy(KEEP).repeat_interleave(WIDTH),
            dense.out.weight,
            dense.out.bias,
        )
        assert torch.allclose(small(X), expected, atol=1e-6)
        assert not torch.allclose(dense(X), expected, atol=1e-2)
    return small, found


class Heads(nn.Module):
    """``out(mixed(x))``: heads of width 3, their count a number on the module."""

    tokens = TOKENS  # of a window; of two windows where there are none

    def __init__(self, key_heads: int = HEADS) -> None:
        super().__init__()
        self.heads = HEADS
        self.q = nn.Linear(6, HEADS * WIDTH)
        self.k, self.v = (nn.Linear(6, key_heads * WIDTH) for _ in range(2))
        self.out = nn.Linear(HEADS * WIDTH, 3)
        self.register_buffer("mask", torch.randn(WINDOWS, TOKENS, TOKENS))

    def parts(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, ``[batch, heads, tokens, width]``."""
        made = (layer(x) for layer in (self.q, self.k, self.v))
        return [part.view(*x.shape[:2], -1, WIDTH).transpose(1, 2) for part in made]

    def over_heads(self, batch: int) -> Tensor:
        """The windows' masks, once for each head: ``[batch, heads, tokens, tokens]``."""
        mask = self.get_buffer("mask").view(1, WINDOWS, 1, TOKENS, TOKENS)
        mask = mask.expand(batch // WINDOWS, -1, self.heads, -1, -1)
        return mask.reshape(-1, self.heads, TOKENS, TOKENS)

    def mixed(self, x: Tensor) -> Tensor:
        """What the heads say, side by side: ``[batch, windows * tokens, heads * width]``."""
        windows = x.view(-1, self.tokens, 6)
        return self.attend(*self.parts(windows)).transpose(1, 2).reshape(*x.shape[:2], -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.mixed(x))
        return out


class OneKeyHead(Heads):
    """Multi-query attention: every query head reads the one key and value head."""

    tokens = WINDOWS * TOKENS

    def __init__(self) -> None:
        super().__init__(key_heads=1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.reshape(-1, self.heads, self.tokens, WIDTH)
        return functional.scaled_dot_product_attention(q, k, v)


class OneKeyHeadByKernel(OneKeyHead):
    """By the fused kernel, which newer versions of torch take for it."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.reshape(-1, self.heads, self.tokens, WIDTH)
        made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        said: Tensor = made[0]
        return said


class Expanded(Heads):
    """Each window has a mask, which fused attention takes expanded to all heads."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, self.over_heads(len(q)))


class ExpandedToShape(Expanded):
    """As many heads as the queries have: before attention it is open which of heads and width go."""

    tokens = WINDOWS * TOKENS

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = self.get_buffer("mask").repeat(1, 2, 2)[0].expand(len(q), q.shape[1], -1, -1)
        return functional.scaled_dot_product_attention(q, k, v, mask)


class ByWindow(Heads):
    """As shifted windows do without fused attention: a dim of windows for the addition alone."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q * WIDTH**-0.5) @ k.transpose(-2, -1)
        scores = scores.view(-1, WINDOWS, self.heads, TOKENS, TOKENS)
        scores = scores + self.get_buffer("mask")[:, None][None]
        scores = scores.view(-1, self.heads, TOKENS, TOKENS).softmax(-1)
        said: Tensor = scores @ v
        return said


@pytest.mark.parametrize(
    "make", [OneKeyHead, OneKeyHeadByKernel, Expanded, ExpandedToShape, ByWindow]
)
def test_heads_are_cut_beside_what_lies_over_all_of_them(make: type[Heads]) -> None:
    torch.manual_seed(0)
    small, _ = cut_heads(make().eval(), "q")
    assert small.q.out_features == 2 * WIDTH
    assert small.heads == (HEADS if make is ExpandedToShape else 2)  # which reads it nowhere
    assert small.k.out_features == (WIDTH if issubclass(make, OneKeyHead) else 2 * WIDTH)


def test_a_fused_mask_is_the_one_that_is_added() -> None:
    """The two ways above are one network."""
    torch.manual_seed(0)
    fused, added = Expanded().eval(), ByWindow().eval()
    added.load_state_dict(fused.state_dict())
    assert torch.allclose(fused(X), added(X), atol=1e-6)


def test_a_mask_that_is_expanded_by_a_number_in_the_code_holds_the_heads() -> None:
    class Written(Expanded):
        def over_heads(self, batch: int) -> Tensor:
            return self.get_buffer("mask")[:1, None].expand(batch, 4, TOKENS, TOKENS)

    found = trace(Written().eval(), X, verify=False)
    assert (
        found.by_name["q"].refused
        == "attention in 'the network': its mask has a size that cannot change"
    )


def test_one_query_head_on_several_key_heads() -> None:
    """The other way round: as many heads come out as keys have."""

    class OneQueryHead(Heads):
        tokens = WINDOWS * TOKENS

        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(6, WIDTH)

        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = (part.reshape(-1, self.heads, self.tokens, WIDTH) for part in (k, v))
            return functional.scaled_dot_product_attention(q, k, v)

    torch.manual_seed(0)
    small, _ = cut_heads(OneQueryHead().eval(), "k")
    assert small.q.out_features == WIDTH


@pytest.mark.parametrize("expanded", [False, True])
def test_as_many_inputs_as_heads_hold_the_heads(expanded: bool) -> None:
    """Nothing is alike along that dim, whatever it is expanded to."""

    class FromInput(Heads):
        def mixed(self, x: Tensor) -> Tensor:
            q, _, _ = self.parts(x)
            given = x.reshape(len(x), 4, WIDTH, TOKENS)
            if expanded:
                given = given.expand(len(x), self.heads, WIDTH, TOKENS)
            said = (q @ given)[..., :WIDTH]
            return said.transpose(1, 2).flatten(2)

    found = trace(FromInput().eval(), X, verify=False)
    why = "matrix product in 'the network': sums over a dimension whose size cannot change"
    assert found.by_name["q"].refused == why


class PartlyRotated(Heads):
    """Rotary positions on the first two of three; the third passes."""

    tokens, turned = WINDOWS * TOKENS, 2

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        angle = torch.arange(self.tokens)[:, None] / 10

        def turn(part: Tensor) -> Tensor:
            half, rest = part[..., : self.turned], part[..., self.turned :]
            swapped = torch.cat((-half[..., 1:], half[..., :1]), -1)
            return torch.cat((half * angle.cos() + swapped * angle.sin(), rest), -1)

        return functional.scaled_dot_product_attention(turn(q), turn(k), v)


class Rotated(PartlyRotated):
    """All three: what passes is an empty range."""

    turned = WIDTH


class OneLayer(Heads):
    """One layer for all three, taken apart where ``heads * head_dim`` ends."""

    tokens = WINDOWS * TOKENS

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = WIDTH
        self.q = nn.Linear(6, 3 * HEADS * WIDTH)
        del self.k, self.v

    def end(self) -> int:
        return self.heads * self.head_dim

    def parts(self, x: Tensor) -> list[Tensor]:
        made, end = self.q(x), self.end()
        taken = made[..., :end], made[..., end : 2 * end], made[..., 2 * end :]
        return [part.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for part in taken]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v)


class OneLayerWidthFirst(OneLayer):
    def end(self) -> int:
        return self.head_dim * self.heads


class OneLayerSplit(OneLayer):
    def parts(self, x: Tensor) -> list[Tensor]:
        taken = self.q(x).split([self.end()] * 3, -1)
        return [part.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for part in taken]


class WidthLeftOpen(Heads):
    """Views leave the heads' width open; all their positions are another number on the module."""

    tokens = WINDOWS * TOKENS

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.all_head_size = HEADS, HEADS * WIDTH

    def parts(self, x: Tensor) -> list[Tensor]:
        made = (layer(x) for layer in (self.q, self.k, self.v))
        return [part.view(*x.shape[:2], self.heads, -1).transpose(1, 2) for part in made]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v)

    def mixed(self, x: Tensor) -> Tensor:
        said = self.attend(*self.parts(x)).transpose(1, 2)
        return said.reshape(*x.shape[:2], self.all_head_size)


@pytest.mark.parametrize(
    "make",
    [PartlyRotated, Rotated, OneLayer, OneLayerWidthFirst, OneLayerSplit, WidthLeftOpen],
)
def test_heads_are_cut_whatever_parts_their_width(make: type[Heads]) -> None:
    torch.manual_seed(0)
    network = make().eval()
    small, found = cut_heads(network, "q")
    assert small.q.out_features == network.get_submodule("q").out_features // 2  # type: ignore[operator]
    if make is WidthLeftOpen:
        assert small.all_head_size == 2 * WIDTH
    # Heads by importance fall anywhere: each choice of one to three of them.
    for bits in range(1, 2**HEADS - 1):
        keep = np.array([bool(bits >> head & 1) for head in range(HEADS)])
        assert certify(network, found, found.plan({"q": keep})).passed


def test_a_product_the_wrong_way_round_is_refused() -> None:
    """Names say which of two numbers is the width; here they lie."""

    class Misnamed(OneLayer):
        def __init__(self) -> None:
            super().__init__()
            self.dim = HEADS  # no width at all

        def end(self) -> int:
            return self.dim * self.head_dim

        def parts(self, x: Tensor) -> list[Tensor]:
            made, end = self.q(x), self.end()
            taken = made[..., :end], made[..., end : 2 * end], made[..., 2 * end :]
            return [part.view(*x.shape[:2], self.dim, -1).transpose(1, 2) for part in taken]

    found = trace(Misnamed().eval(), X, verify=False)
    assert all(axis.tensor != "q.weight" or axis.dim for g in found.cuttable for axis in g.axes)


class Divided(Heads):
    """The heads' width is what one number on the module leaves for each of another."""

    tokens = WINDOWS * TOKENS

    def __init__(self, heads: int = HEADS) -> None:
        super().__init__()
        self.heads, self.embed_dim = heads, HEADS * WIDTH

    def parts(self, x: Tensor) -> list[Tensor]:
        made = (layer(x) for layer in (self.q, self.k, self.v))
        width = self.embed_dim // self.heads
        return [part.view(*x.shape[:2], self.heads, width).transpose(1, 2) for part in made]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v


class DividedByUnflatten(Divided):
    def parts(self, x: Tensor) -> list[Tensor]:
        made = (layer(x) for layer in (self.q, self.k, self.v))
        sizes = self.heads, self.embed_dim // self.heads
        return [part.unflatten(-1, sizes).transpose(1, 2) for part in made]


@pytest.mark.parametrize("make", [Divided, DividedByUnflatten])
def test_a_width_that_heads_divide_follows_them(make: type[Heads]) -> None:
    torch.manual_seed(0)
    small, _ = cut_heads(make().eval(), "q")
    assert (small.heads, small.embed_dim) == (2, 2 * WIDTH)


def test_a_single_head_is_as_wide_as_the_number_that_it_divides() -> None:
    torch.manual_seed(0)
    network = Divided(heads=1).eval()
    found = trace(network, X)
    # Queries and keys meet each other; values go their own way, and both are ``embed_dim`` wide.
    assert [(g.name, g.units) for g in found.cuttable] == [("q", 12)]
    keep = np.arange(12) % 3 > 0
    plan = found.plan({"q": keep})
    assert certify(network, found, plan).passed
    small: Any = cut(network, plan)
    assert (small.heads, small.embed_dim, small.v.out_features) == (1, 8, 8)
    assert count_macs(small, X[:1]).macs == found.macs(plan.channels)


class DividedShape(nn.Module):
    """As nanoGPT: the width of what comes in is what the heads divide."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.stem = nn.Linear(6, HEADS * WIDTH)
        self.qkv = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)
        self.out = nn.Linear(HEADS * WIDTH, 3)

    def forward(self, x: Tensor, stays: Tensor | None = None) -> Tensor:
        """``stays``: which channels are not set to zero where they are made, 1 or 0."""

        def masked(made: Tensor) -> Tensor:
            return made if stays is None else made * stays

        x = masked(self.stem(x))
        batch, tokens, width = x.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        said = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        out: Tensor = self.out(x + masked(said.transpose(1, 2).flatten(2)))
        return out


def test_a_width_from_a_shape_goes_by_whole_heads() -> None:
    torch.manual_seed(0)
    network = DividedShape().eval()
    found = trace(network, X)
    assert [(g.name, g.units, g.channels_per_unit) for g in found.cuttable] == [("stem", 4, 3)]
    plan = found.plan({"stem": KEEP})
    assert certify(network, found, plan).passed
    small: Any = cut(network, plan)
    assert (small.heads, small.stem.out_features, small.qkv.out_features) == (2, 6, 18)
    with torch.no_grad():
        stays = torch.from_numpy(KEEP).repeat_interleave(WIDTH).float()
        assert torch.allclose(small(X), network(X, stays), atol=1e-6)


@pytest.mark.parametrize(("scale", "cuttable"), [(None, {"v": 12}), (0.3, {"q": 8, "v": 12})])
def test_attention_without_a_kernel_takes_its_scale_from_the_width(
    scale: float | None, cuttable: dict[str, int]
) -> None:
    """Values of another width than queries: products and a softmax, one after the other.

    Scores are so small that no comparison of outputs tells which scale they had.
    """

    def attend(n: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x)[:, None] for layer in (n.q, n.k, n.v))
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=scale)
        out: Tensor = n.out(mixed[:, 0])
        return out

    layers = {"q": nn.Linear(16, 8), "k": nn.Linear(16, 8), "v": nn.Linear(16, 12)}
    network = Wired(attend, **layers, out=nn.Linear(12, 3)).eval()
    with torch.no_grad():
        for name in "qk":
            network.get_parameter(f"{name}.weight").mul_(1e-4)
    found = trace(network, torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0)))
    assert {g.name: g.units for g in found.cuttable} == cuttable
