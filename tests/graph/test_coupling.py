"""Which channels are coupled: groups written down by hand from the network's definition."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.graph import Trace, certify, trace
from prunus.zoo import PadShortcut
from tests.helpers import (
    FusedAttention,
    GroupedQueries,
    Pick,
    Wired,
    all_but,
    axes_of,
    chain,
    images,
    pooled,
    random_choice,
)

IMAGES = images(2, 3, 8, 8)
TOKENS = images(2, 5, 6)


def refusals(found: Trace) -> dict[str, str]:
    return {g.name: g.refused for g in found.groups if g.refused and not g.protected}


def test_chain_couples_filters_norm_and_next_kernels() -> None:
    found = trace(chain(), IMAGES)
    assert [g.name for g in found.groups] == ["0", "3", "6"]
    four, five = [0, 1, 2, 3], [0, 1, 2, 3, 4]
    assert axes_of(found, "0") == {
        "0.weight:0": four,
        "0.bias:0": four,
        "1.weight:0": four,
        "1.bias:0": four,
        "1.running_mean:0": four,
        "1.running_var:0": four,
        "3.weight:1": four,
    }
    assert axes_of(found, "3") == {"3.weight:0": five, "3.bias:0": five, "6.weight:1": five}
    roles = {f"{a.tensor}:{a.dim}": a.role for a in found.by_name["0"].axes}
    assert {name for name, role in roles.items() if role == "in"} == {"3.weight:1"}


def test_network_output_and_input_are_protected() -> None:
    found = trace(chain(), IMAGES)
    assert [g.name for g in found.cuttable] == ["0", "3"]
    assert found.by_name["6"].protected
    assert "output" in found.by_name["6"].refused
    assert all("0.weight:1" not in axes_of(found, g.name) for g in found.groups)


def test_every_tensor_of_a_nested_output_is_protected() -> None:
    network = Wired(
        lambda n, x: {"logits": n.b(n.a(x)), "more": [n.c(x), (n.a(x),)]},
        a=nn.Linear(6, 4),
        b=nn.Linear(4, 3),
        c=nn.Linear(6, 5),
    )
    assert trace(network, TOKENS).cuttable == ()


def test_addition_couples_both_branches() -> None:
    network = Wired(
        lambda n, x: n.c(n.a(x) + n.b(x)).mean((2, 3)),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 4, 3, padding=1),
        c=nn.Conv2d(4, 2, 1),
    )
    found = trace(network, IMAGES)
    four = [0, 1, 2, 3]
    assert [g.name for g in found.cuttable] == ["a"]
    expected = ("a.weight:0", "a.bias:0", "b.weight:0", "b.bias:0", "c.weight:1")
    assert axes_of(found, "a") == dict.fromkeys(expected, four)


def test_addition_to_the_input_cannot_be_cut() -> None:
    network = Wired(
        lambda n, x: n.b(x + n.a(x)).mean((2, 3)), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 2, 1)
    )
    found = trace(network, IMAGES)
    assert found.cuttable == ()
    assert "meets a dimension whose size cannot change" in found.by_name["a"].refused


def test_concatenation_keeps_its_parts_apart() -> None:
    network = Wired(
        lambda n, x: n.c(torch.cat([n.a(x), x, n.b(x)], dim=1)).mean((2, 3)),
        a=nn.Conv2d(3, 2, 1),
        b=nn.Conv2d(3, 4, 1),
        c=nn.Conv2d(9, 2, 1),
    )
    found = trace(network, IMAGES)
    assert [g.name for g in found.cuttable] == ["a", "b"]
    assert axes_of(found, "a")["c.weight:1"] == [0, 1, -1, -1, -1, -1, -1, -1, -1]
    assert axes_of(found, "b")["c.weight:1"] == [-1, -1, -1, -1, -1, 0, 1, 2, 3]


def test_equal_halves_of_a_split_go_together() -> None:
    def gated(n: Any, x: Tensor) -> Tensor:
        value, gate = n.a(x).chunk(2, dim=1)
        out: Tensor = n.b(value * gate.sigmoid()).mean((2, 3))
        return out

    found = trace(Wired(gated, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 2, 1)), IMAGES)
    assert axes_of(found, "a") == {
        "a.weight:0": [0, 1, 2, 0, 1, 2],
        "a.bias:0": [0, 1, 2, 0, 1, 2],
        "b.weight:1": [0, 1, 2],
    }


def test_depthwise_filter_belongs_to_the_channel_it_reads() -> None:
    network = pooled(
        nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1)
        )
    )
    found = trace(network, IMAGES)
    assert [g.name for g in found.cuttable] == ["0.0"]
    assert axes_of(found, "0.0") == {
        "0.0.weight:0": [0, 1, 2, 3],
        "0.0.bias:0": [0, 1, 2, 3],
        "0.1.weight:0": [0, 0, 1, 1, 2, 2, 3, 3],
        "0.1.bias:0": [0, 0, 1, 1, 2, 2, 3, 3],
        "0.3.weight:1": [0, 0, 1, 1, 2, 2, 3, 3],
    }


def test_grouped_convolution_loses_the_same_position_in_every_group() -> None:
    network = pooled(
        nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1)
        )
    )
    found = trace(network, IMAGES)
    assert axes_of(found, "0.0") == {
        "0.0.weight:0": [0, 1, 2, 0, 1, 2],
        "0.0.bias:0": [0, 1, 2, 0, 1, 2],
        "0.1.weight:1": [0, 1, 2],
    }
    assert axes_of(found, "0.1")["0.1.weight:0"] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_flatten_spreads_a_channel_over_height_times_width() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 7), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    found = trace(network, IMAGES)  # 3 channels of 2x2
    assert axes_of(found, "0")["3.weight:1"] == [0] * 4 + [1] * 4 + [2] * 4


def test_index_shortcut_couples_a_part_of_the_wider_layer() -> None:
    network = Wired(
        lambda n, x: n.c((n.short(n.a(x)) + n.b(x)).relu()).mean((2, 3)),
        a=nn.Conv2d(3, 2, 1),
        short=PadShortcut(2, 4),
        b=nn.Conv2d(3, 4, 3, stride=2, padding=1),
        c=nn.Conv2d(4, 2, 1),
    )
    found = trace(network, IMAGES)
    assert [g.name for g in found.cuttable] == ["a", "b"]
    wide = [-1, 0, 1, -1]
    assert axes_of(found, "a") == {
        "a.weight:0": [0, 1],
        "a.bias:0": [0, 1],
        "short.source:0": wide,
        "b.weight:0": wide,
        "b.bias:0": wide,
        "c.weight:1": wide,
    }
    assert axes_of(found, "b")["b.weight:0"] == [0, -1, -1, 1]


def test_constant_pad_keeps_the_padded_positions() -> None:
    network = Wired(
        lambda n, x: n.c(functional.pad(n.a(x), (0, 0, 0, 0, 1, 1)) + n.b(x)).mean((2, 3)),
        a=nn.Conv2d(3, 2, 1),
        b=nn.Conv2d(3, 4, 1),
        c=nn.Conv2d(4, 2, 1),
    )
    found = trace(network, IMAGES)
    assert [g.name for g in found.cuttable] == ["a"]
    assert axes_of(found, "a")["b.weight:0"] == [-1, 0, 1, -1]


def test_pad_to_a_hard_coded_channel_count_is_refused() -> None:
    def padded(n: Any, x: Tensor) -> Tensor:
        y = n.a(x)
        y = functional.pad(y, (0, 0, 0, 0, 0, 4 - y.shape[1]))
        out: Tensor = n.c(y + n.b(x)).mean((2, 3))
        return out

    network = Wired(padded, a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 4, 1), c=nn.Conv2d(4, 2, 1))
    found = trace(network, IMAGES)
    assert found.cuttable == ()
    assert found.by_name["a"].refused.startswith("probe failed")
    assert [g.name for g in trace(network, IMAGES, verify=False).cuttable] == ["a"]


def test_heads_of_fused_attention_go_whole() -> None:
    found = trace(FusedAttention(4), TOKENS)  # 3 x (4 heads x 2)
    heads = [0, 0, 1, 1, 2, 2, 3, 3]
    assert axes_of(found, "qkv") == {
        "qkv.weight:0": heads * 3,
        "qkv.bias:0": heads * 3,
        "out.weight:1": heads,
    }


def test_grouped_queries_go_with_their_key_head() -> None:
    found = trace(GroupedQueries(), TOKENS)
    queries, keys = [0] * 6 + [1] * 6, [0] * 3 + [1] * 3
    assert axes_of(found, "q") == {
        "q.weight:0": queries,
        "q.bias:0": queries,
        "k.weight:0": keys,
        "k.bias:0": keys,
        "v.weight:0": keys,
        "v.bias:0": keys,
        "out.weight:1": queries,
    }


def test_module_called_twice_couples_its_input_and_output() -> None:
    network = Wired(
        lambda n, x: n.b(n.twice(n.twice(n.a(x)).relu())).mean((2, 3)),
        a=nn.Conv2d(3, 4, 1),
        twice=nn.Conv2d(4, 4, 1),
        b=nn.Conv2d(4, 2, 1),
    )
    found = trace(network, IMAGES)
    four = [0, 1, 2, 3]
    assert [g.name for g in found.cuttable] == ["a"]
    assert axes_of(found, "a")["twice.weight:0"] == four
    assert axes_of(found, "a")["twice.weight:1"] == four


def test_tied_weights_have_one_name_and_are_coupled() -> None:
    embed, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = embed.weight
    network = Wired(
        lambda n, x: n.head(n.mid(n.embed(x)).mean(1)), embed=embed, mid=nn.Linear(4, 4), head=head
    )
    found = trace(network, torch.arange(6).reshape(2, 3))
    assert "head.weight" not in found.shape.tensors
    four = [0, 1, 2, 3]
    expected = ("embed.weight:1", "mid.weight:1", "mid.weight:0", "mid.bias:0")
    assert [g.name for g in found.cuttable] == ["mid"]
    assert axes_of(found, "mid") == dict.fromkeys(expected, four)
    assert found.params({}) == 28 + 20


def test_group_norm_loses_whole_groups() -> None:
    layers = [nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 2, 1)]
    found = trace(pooled(nn.Sequential(*layers)), IMAGES)
    assert axes_of(found, "0.0")["0.1.weight:0"] == [0, 0, 1, 1, 2, 2]


def test_reduction_over_channels_is_noted() -> None:
    layers = [nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)]
    found = trace(nn.Sequential(*layers), TOKENS)
    assert {g.name: g.reduced for g in found.cuttable} == {"0": True, "2": False}


OPERATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "fft": ("fft", lambda y: torch.fft.fft(y).real),
    "cdist": ("cdist", lambda y: torch.cdist(y, torch.zeros(1, 3, 4))),
    "cumsum": ("cumsum", lambda y: y.cumsum(-1)),
    "roll": ("roll", lambda y: y.roll(1, -1)),
    "slice": ("slice", lambda y: y[..., :3]),
    "unequal": ("split", lambda y: y.split([1, 3], -1)[1]),
}


@pytest.mark.parametrize("case", OPERATIONS)
def test_operation_that_cannot_be_followed_refuses_by_name(case: str) -> None:
    name, operation = OPERATIONS[case]
    found = trace(Wired(lambda n, x: operation(n.a(x)), a=nn.Linear(6, 4)), TOKENS, verify=False)
    assert found.cuttable == ()
    assert name in refusals(found)["a"]


def test_unknown_operation_is_named_in_the_cost() -> None:
    network = Wired(lambda n, x: torch.fft.fft(n.a(x)).real, a=nn.Linear(6, 4))
    assert any("fft" in name for name in trace(network, TOKENS).cost({}).uncounted)


def test_index_buffer_used_twice_can_be_cut() -> None:
    network = Wired(
        lambda n, x: n.b(n.pick(n.pick(n.a(x)).relu())).mean((2, 3)),
        a=nn.Conv2d(3, 4, 1),
        pick=Pick(4),
        b=nn.Conv2d(4, 2, 1),
    )
    found = trace(network, IMAGES)
    assert axes_of(found, "a")["a.weight:0"] == [0, 1, 1, 0]  # position i meets position 3 - i
    assert [g.name for g in found.cuttable] == ["a"]


def test_channel_shuffle_keeps_more_than_one_unit() -> None:
    """12 channels in 3 groups of 4: position j of every group can go, so there are 4 units."""

    def shuffled(n: Any, x: Tensor) -> Tensor:
        batch, channels, height, width = n.a(x).shape
        y = n.a(x).view(batch, n.groups, channels // n.groups, height, width)
        out: Tensor = n.b(y.transpose(1, 2).reshape(batch, channels, height, width)).mean((2, 3))
        return out

    network = Wired(shuffled, a=nn.Conv2d(3, 12, 1), b=nn.Conv2d(12, 2, 1), groups=3)
    assert trace(network, IMAGES).by_name["a"].units == 4


def test_joint_rows_of_a_linear_layer_are_counted() -> None:
    """Channels split into 3 x 4 before a layer over space: its rows follow the cut."""
    network = Wired(
        lambda n, x: n.b(
            n.space(n.a(x).view(x.shape[0], 3, -1, 64)).view(x.shape[0], -1, 8, 8)
        ).mean((2, 3)),
        a=nn.Conv2d(3, 12, 1),
        space=nn.Linear(64, 64),
        b=nn.Conv2d(12, 2, 1),
    )
    found = trace(network, IMAGES)
    assert found.by_name["a"].units == 4
    keep = np.array([True, False, True, True])  # 9 of 12 channels
    macs = 64 * 3 * 9 + 9 * 64 * 64 + 64 * 9 * 2
    assert found.macs({"a": keep}) == macs


# Blocks must lose heads (attention) and hidden units (feed-forward): layers of either name of
# transformers 4 or 5.
HEADS = r"attention\.(self\.query|q_proj)$|attn\.(c_attn|q_proj)$"

HIDDEN = r"(intermediate\.dense|mlp\.(fc1|c_fc|gate_proj|dense1)|pwconv1|bottleneck.*conv1|conv1)$"

BUILDS = {
    "Bert": (HEADS, HIDDEN),
    "GPT2": (HEADS, HIDDEN),
    "Llama": (HEADS, HIDDEN),
    "Segformer": (HEADS, HIDDEN),
    "ConvNext": (HIDDEN,),
    "Bit": (HIDDEN,),
}


@pytest.mark.parametrize("name", BUILDS)
def test_transformer_layers_are_cuttable_and_certified(name: str, architectures: Any) -> None:
    network, inputs = architectures(name)
    found = trace(network, inputs)
    for pattern in BUILDS[name]:
        assert any(re.search(pattern, g.name) for g in found.cuttable), pattern
    choice = random_choice(found, seed=1)
    assert certify(network, found, found.plan(choice)).passed


class BiasedAttention(FusedAttention):
    """Attention with a learned bias per head, as in Swin and T5."""

    def __init__(self, heads: int) -> None:
        super().__init__(heads)
        self.slope = nn.Parameter(torch.linspace(0.1, 1.0, heads).reshape(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_width)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        distance = torch.arange(tokens) - torch.arange(tokens)[:, None]
        bias = (self.slope * distance)[None]
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        y = y.transpose(1, 2).reshape(batch, tokens, -1)
        out: Tensor = self.out(y).mean(dim=1)
        return out


@pytest.mark.parametrize("heads", [2, 4])
def test_bias_of_a_head_goes_with_the_head(heads: int) -> None:
    found = trace(BiasedAttention(heads), TOKENS)
    assert [g.name for g in found.cuttable] == ["qkv"]
    assert axes_of(found, "qkv")["slope:0"] == list(range(heads))


def test_every_cuttable_group_can_be_cut_alone() -> None:
    network = BiasedAttention(4)
    found = trace(network, TOKENS)
    for group in found.cuttable:
        plan = found.plan({group.name: all_but(group.units, 0)})
        assert certify(network, found, plan).passed
