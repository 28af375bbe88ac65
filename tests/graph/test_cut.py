"""What a cut leaves: weights by hand, sizes kept on modules, and everything else as it was."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.errors import GraphError, PlanMismatchError
from prunus.graph import cut, network_shape, trace
from prunus.plan import BoolArray, Plan, SetAttribute
from prunus.zoo import PadShortcut, build
from tests.helpers import (
    FusedAttention,
    Wired,
    all_but,
    chain,
    enliven_,
    images,
    pooled,
    random_choice,
)

IMAGES = images(2, 3, 8, 8)
TOKENS = images(2, 5, 6)


def by_hand() -> nn.Sequential:
    """1x1 convolution 2 to 3, batch norm, ReLU, mean, linear 3 to 2; every value told apart."""
    network = nn.Sequential(
        nn.Conv2d(2, 3, 1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 2),
    ).eval()
    values = {
        "0.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).reshape(3, 2, 1, 1),
        "0.bias": torch.tensor([7.0, 8.0, 9.0]),
        "1.weight": torch.tensor([10.0, 11.0, 12.0]),
        "1.bias": torch.tensor([13.0, 14.0, 15.0]),
        "1.running_mean": torch.tensor([16.0, 17.0, 18.0]),
        "1.running_var": torch.tensor([19.0, 20.0, 21.0]),
        "1.num_batches_tracked": torch.tensor(22),
        "5.weight": torch.tensor([[23.0, 24.0, 25.0], [26.0, 27.0, 28.0]]),
        "5.bias": torch.tensor([29.0, 30.0]),
    }
    network.load_state_dict(values)
    return network


def plan_of(network: nn.Module, x: Any, **choice: BoolArray) -> Plan:
    return trace(network, x).plan({name.replace("_", "."): keep for name, keep in choice.items()})


def test_kept_weights_are_exactly_the_selected_ones() -> None:
    network = by_hand()
    x = images(2, 2, 4, 4)
    small = cut(network, trace(network, x).plan({"0": np.array([True, False, True])}))
    state = {name: value.tolist() for name, value in small.state_dict().items()}
    assert state == {
        "0.weight": [[[[1.0]], [[2.0]]], [[[5.0]], [[6.0]]]],
        "0.bias": [7.0, 9.0],
        "1.weight": [10.0, 12.0],
        "1.bias": [13.0, 15.0],
        "1.running_mean": [16.0, 18.0],
        "1.running_var": [19.0, 21.0],
        "1.num_batches_tracked": 22,
        "5.weight": [[23.0, 25.0], [26.0, 28.0]],
        "5.bias": [29.0, 30.0],
    }


def test_network_that_is_cut_stays_as_it_was() -> None:
    network = by_hand()
    before, held = copy.deepcopy(network.state_dict()), [id(p) for p in network.parameters()]
    plan = trace(network, images(2, 2, 4, 4)).plan({"0": np.array([True, False, True])})
    small = cut(network, plan)
    with torch.no_grad():
        for tensor in (*small.parameters(), *small.buffers()):
            tensor.zero_()  # shares no memory with the original
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items())
    assert [id(p) for p in network.parameters()] == held
    assert str(network) == str(by_hand())  # and its attributes are the old ones


Case = tuple[Callable[[], nn.Module], Tensor, str, BoolArray, dict[str, Any]]
CASES: dict[str, Case] = {
    "convolutions and batch norm": (
        chain,
        IMAGES,
        "0",
        all_but(4, 1),
        {"0.out_channels": 3, "1.num_features": 3, "3.in_channels": 3, "3.out_channels": 5},
    ),
    "linear after flatten": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 7), nn.Flatten(), nn.Linear(12, 2)),
        IMAGES,
        "0",
        all_but(3, 0),
        {"2.in_features": 8, "2.out_features": 2},
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        TOKENS,
        "0",
        all_but(4, 3),
        {"0.out_features": 3, "1.normalized_shape": (3,), "2.in_features": 3},
    ),
    "layer norm over an image": (
        lambda: pooled(
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm([4, 8, 8]), nn.Conv2d(4, 2, 1))
        ),
        IMAGES,
        "0.0",
        all_but(4, 3),
        {"0.1.normalized_shape": (3, 8, 8)},
    ),
    "layer norm without scale": (
        lambda: nn.Sequential(
            nn.Linear(6, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2)
        ),
        TOKENS,
        "0",
        all_but(4, 3),
        {"1.normalized_shape": (3,)},
    ),
    "RMS norm": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.RMSNorm(4), nn.Linear(4, 2)),
        TOKENS,
        "0",
        all_but(4, 3),
        {"1.normalized_shape": (3,)},
    ),
    "RMS norm without scale": (
        lambda: nn.Sequential(
            nn.Linear(6, 4), nn.RMSNorm(4, elementwise_affine=False), nn.Linear(4, 2)
        ),
        TOKENS,
        "0",
        all_but(4, 3),
        {"1.normalized_shape": (3,)},
    ),
    "group norm": (
        lambda: pooled(nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6), nn.Conv2d(6, 2, 1))),
        IMAGES,
        "0.0",
        all_but(3, 1),
        {"0.1.num_groups": 2, "0.1.num_channels": 4},
    ),
    "depthwise convolution": (
        lambda: pooled(
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
        ),
        IMAGES,
        "0.0",
        all_but(4, 0),
        {"0.1.groups": 3, "0.1.in_channels": 3, "0.1.out_channels": 6, "0.2.in_channels": 6},
    ),
    "grouped convolution": (
        lambda: pooled(
            nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
        ),
        IMAGES,
        "0.0",
        all_but(3, 2),
        {"0.0.out_channels": 4, "0.1.groups": 2, "0.1.in_channels": 4, "0.1.out_channels": 8},
    ),
    "transposed convolution": (
        lambda: pooled(
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2), nn.Conv2d(6, 2, 1))
        ),
        IMAGES,
        "0.1",
        all_but(6, 5),
        {"0.1.in_channels": 4, "0.1.out_channels": 5, "0.2.in_channels": 5},
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2)),
        torch.arange(6).reshape(2, 3),
        "0",
        all_but(4, 1),
        {"0.num_embeddings": 7, "0.embedding_dim": 3},
    ),
    "heads": (
        lambda: FusedAttention(4),
        TOKENS,
        "qkv",
        all_but(4, 0),
        {".heads": 3, ".head_width": 2, "qkv.out_features": 18, "out.in_features": 6},
    ),
    "index shortcut": (
        lambda: pooled(nn.Sequential(nn.Conv2d(3, 4, 1), PadShortcut(4, 6), nn.Conv2d(6, 2, 1))),
        IMAGES,
        "0.0",
        all_but(4, 1),
        {"0.2.in_channels": 5},
    ),
    "PReLU": (
        lambda: pooled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4), nn.Conv2d(4, 2, 1))),
        IMAGES,
        "0.0",
        all_but(4, 1),
        {"0.1.num_parameters": 3},
    ),
    "instance norm": (
        lambda: pooled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 1))),
        IMAGES,
        "0.0",
        all_but(4, 1),
        {"0.1.num_features": 3},
    ),
    "group norm without scale": (
        lambda: pooled(
            nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6, affine=False), nn.Conv2d(6, 2, 1))
        ),
        IMAGES,
        "0.0",
        all_but(3, 1),
        {"0.1.num_groups": 2, "0.1.num_channels": 4},
    ),
}


@pytest.mark.parametrize(
    "name",
    list(CASES),
)
def test_sizes_kept_on_modules_follow(name: str) -> None:
    make, x, group, keep, expected = CASES[name]
    network = enliven_(make())
    small = cut(network, trace(network, x, verify=False).plan({group: keep}))
    small(x)  # as an error, a warning about a wrong size fails the test
    found = {}
    for key in expected:
        path, _, attribute = key.rpartition(".")
        found[key] = getattr(small.get_submodule(path), attribute)
    assert found == expected
    assert {type(v) for v in found.values()} <= {int, tuple}


def test_index_buffer_is_renumbered() -> None:
    network = enliven_(
        pooled(nn.Sequential(nn.Conv2d(3, 4, 1), PadShortcut(4, 6), nn.Conv2d(6, 2, 1)))
    )
    assert network.get_buffer("0.1.source").tolist() == [4, 0, 1, 2, 3, 4]
    small = cut(network, trace(network, IMAGES).plan({"0.0": all_but(4, 1)}))
    # Channels 0, 2, 3 are now 0, 1, 2; the zero channel behind them is 3.
    assert small.get_buffer("0.1.source").tolist() == [3, 0, 1, 2, 3]


def test_numbers_of_a_transformer_module_follow(architectures: Any) -> None:
    """GPT-2 splits its fused projection by numbers on two modules, each of its own layer."""
    network, inputs = architectures("GPT2")
    found = trace(network, inputs)
    group = next(g for g in found.cuttable if g.name.endswith("h.0.attn.c_attn"))
    assert group.units == 4  # heads of width 12
    small = cut(network, found.plan({group.name: all_but(4, 2)}))
    sizes = []
    for net in (small, network):
        for k in (0, 1):
            layer = net.get_submodule(f"transformer.h.{k}.attn")
            sizes.append((layer.split_size, layer.get_submodule("c_attn").nf))
    assert sizes == [(36, 108), (48, 144), (48, 144), (48, 144)]


def test_config_is_copied_before_it_is_changed() -> None:
    """Modules share one config: the cut layer gets its own, the other keeps the old one."""

    class Config:
        def __init__(self) -> None:
            self.heads = 4

    class Layer(nn.Module):
        def __init__(self, config: Config) -> None:
            super().__init__()
            self.config = config
            self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            split = self.qkv(x).view(*x.shape[:2], 3, self.config.heads, 2)
            q, k, v = split.permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            out: Tensor = self.out(y.reshape(*x.shape[:2], -1)).mean(1)
            return out

    config = Config()
    network = Wired(lambda n, x: n.one(x) + n.two(x), one=Layer(config), two=Layer(config))
    small = cut(network, trace(network, TOKENS).plan({"one.qkv": all_but(4, 0)}))
    heads = [small.get_submodule(name).config.heads for name in ("one", "two")]  # type: ignore[union-attr]
    assert (heads, config.heads) == ([3, 4], 4)
    assert small(TOKENS).shape == (2, 3)


def test_tied_weights_stay_tied() -> None:
    embed, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = embed.weight
    network = Wired(
        lambda n, x: n.head(n.mid(n.embed(x)).mean(1)), embed=embed, mid=nn.Linear(4, 4), head=head
    )
    small = cut(network, trace(network, torch.arange(6).reshape(2, 3)).plan({"mid": all_but(4, 1)}))
    assert small.get_parameter("head.weight") is small.get_parameter("embed.weight")
    assert small.get_parameter("head.weight").shape == (7, 3)
    assert small.get_submodule("head").in_features == 3


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return list(left) == list(right) and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("model", ["digits_cnn", "resnet20", "mobilenet_v2"])
def test_two_cuts_in_a_row_equal_one(model: str) -> None:
    x = images(2, 1, 8, 8) if model == "digits_cnn" else images(2, 3, 32, 32)
    network = enliven_(build(model, width=0.5))
    found = trace(network, x, verify=False)
    first, second = random_choice(found, 1, 0.7), random_choice(found, 2, 0.7)
    for name in first:  # something is left of both
        second[name][np.flatnonzero(first[name])[0]] = True
    halfway = cut(network, found.plan(first))
    again = trace(halfway, x, verify=False)
    rest = {
        name: keep[first[name]]
        for name, keep in second.items()
        if again.by_name.get(name) is not None
    }
    both = {name: first[name] & second[name] if name in rest else first[name] for name in first}
    step_by_step = cut(halfway, again.plan({n: k for n, k in rest.items() if not k.all()}))
    at_once = cut(network, found.plan(both))
    assert same(step_by_step, at_once)
    assert torch.equal(step_by_step(x), at_once(x))


def test_empty_plan_copies_the_network() -> None:
    network = enliven_(build("digits_cnn"))
    x = images(2, 1, 8, 8)
    plan = trace(network, x).plan({"conv2": np.ones(24, bool)})
    assert plan.is_empty
    small = cut(network, plan)
    assert small is not network
    assert same(small, network)
    assert network_shape(small) == network_shape(network)


def test_plan_for_another_network_is_refused_by_name_and_shape() -> None:
    x = images(2, 1, 8, 8)
    plan = trace(build("digits_cnn"), x).plan({"conv2": all_but(24, 0)})
    with pytest.raises(PlanMismatchError, match=r"'bn1.bias' should be \[16\] but is \[8\]"):
        cut(build("digits_cnn", width=0.5), plan)
    with pytest.raises(PlanMismatchError, match=r"should be \[24\] but is absent"):
        cut(build("resnet20"), plan)
    once = cut(build("digits_cnn"), plan)
    with pytest.raises(PlanMismatchError, match=r"should be \[24\] but is \[23\]"):
        cut(once, plan)


def test_plan_for_a_network_with_other_numbers_is_refused() -> None:
    """Two heads of width 4 have the tensors of four heads of width 2."""
    plan = trace(FusedAttention(4), TOKENS).plan({"qkv": all_but(4, 0)})
    assert any(isinstance(e, SetAttribute) and e.before == 4 for e in plan.edits)
    with pytest.raises(PlanMismatchError):
        cut(FusedAttention(2), plan)


def test_plan_whose_axes_do_not_give_its_result_is_refused() -> None:
    network = chain()
    plan = trace(network, IMAGES).plan({"0": all_but(4, 0)})
    wrong = plan.model_copy(update={"result": plan.source})
    with pytest.raises(PlanMismatchError, match="the plan's result"):
        cut(network, wrong)


@pytest.mark.parametrize("model", ["resnet20", "mobilenet_v2"])
def test_plan_read_from_json_makes_the_same_network(model: str, tmp_path: Path) -> None:
    x = images(2, 3, 32, 32)
    network = enliven_(build(model, width=0.25))
    found = trace(network, x, verify=False)
    plan = found.plan(random_choice(found, 3))
    plan.save(tmp_path / "plan.json")
    small, again = cut(network, plan), cut(network, Plan.load(tmp_path / "plan.json"))
    assert same(small, again)
    assert torch.equal(small(x), again(x))


def test_mode_gradients_and_dtype_are_kept() -> None:
    network = chain().double()
    network[1].eval()
    network[3].requires_grad_(False)
    plan = trace(network, IMAGES.double()).plan({"0": all_but(4, 0)})
    small = cut(network, plan)
    modes = {name: module.training for name, module in network.named_modules()}
    assert {name: module.training for name, module in small.named_modules()} == modes
    wants = {name: p.requires_grad for name, p in network.named_parameters()}
    assert {name: p.requires_grad for name, p in small.named_parameters()} == wants
    assert {p.dtype for p in small.parameters()} == {torch.float64}


def test_cut_network_stays_on_its_device() -> None:
    network = chain().eval()
    plan = trace(network, IMAGES).plan({"0": all_but(4, 0)})
    small = cut(network.to("meta"), plan)
    assert {p.device.type for p in small.parameters()} == {"meta"}
    assert small.get_parameter("0.weight").shape == (3, 3, 3, 3)


def test_cut_network_trains() -> None:
    network = chain().train()
    small = cut(network, trace(network, IMAGES).plan({"0": all_but(4, 0)}))
    small(IMAGES).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    assert all(p.grad is None for p in network.parameters())


def test_new_values_replace_the_selected_ones() -> None:
    network = by_hand()
    plan = trace(network, images(2, 2, 4, 4)).plan({"0": np.array([True, False, True])})
    small = cut(network, plan, {"5.weight": torch.full((2, 2), 7.0)})
    assert small.get_parameter("5.weight").tolist() == [[7.0, 7.0], [7.0, 7.0]]
    assert small.get_parameter("0.bias").tolist() == [7.0, 9.0]


def test_new_values_that_do_not_fit_are_refused() -> None:
    network = by_hand()
    plan = trace(network, images(2, 2, 4, 4)).plan({"0": np.array([True, False, True])})
    with pytest.raises(GraphError, match=r"'5.weight' \[2, 3\] does not fit .*\[2, 2\]"):
        cut(network, plan, {"5.weight": torch.zeros(2, 3)})
    with pytest.raises(GraphError, match=r"'9.weight' .*no such tensor"):
        cut(network, plan, {"9.weight": torch.zeros(1)})
