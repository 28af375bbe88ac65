"""Batch norms are folded exactly where a layer's output goes there and nowhere else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.candidates.fold import Pair, find_pairs, fold_
from prunus.candidates.skeleton import Skeleton
from prunus.graph import cut, trace
from prunus.graph.difference import relative_difference
from prunus.zoo import build
from tests.candidates.subjects import bits_of, forward, inner, random_plan, same_bits, unchanged
from tests.helpers import Wired, chain, enliven_, images, pooled

RGB = images(4, 3, 8, 8)


def conv_norm(bias: bool = True, **norm: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, **norm))


def shared_layer() -> nn.Module:
    return Wired(
        lambda m, x: m.norm(m.conv(m.conv(x))).mean((2, 3)),
        conv=nn.Conv2d(3, 3, 1),
        norm=nn.BatchNorm2d(3),
    )


def shared_norm() -> nn.Module:
    return Wired(
        lambda m, x: m.norm(m.b(m.norm(m.a(x)).relu())).mean((2, 3)),
        a=nn.Conv2d(3, 3, 1),
        b=nn.Conv2d(3, 3, 1),
        norm=nn.BatchNorm2d(3),
    )


def tied_weight() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1))
    network[3].weight = network[0].weight
    return pooled(network)


def tied_bias() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1))
    network[3].bias = network[0].bias
    return pooled(network)


class NormAndReLU(nn.BatchNorm2d):
    """A batch norm that does more than its class says."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Standardized(nn.Conv2d):
    """A convolution whose weight is scaled to norm one when it is called."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        return functional.conv2d(x, weight, self.bias)


def read_twice(where: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    def wiring(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return where(y, m.norm(y)).mean((2, 3))

    return Wired(wiring, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))


Case = tuple[Callable[[], nn.Module], Tensor, set[tuple[str, str]]]
CASES: dict[str, Case] = {
    "with bias": (lambda: pooled(conv_norm()), RGB, {("0.0", "0.1")}),
    "without bias": (lambda: pooled(conv_norm(bias=False)), RGB, {("0.0", "0.1")}),
    "without scale": (lambda: pooled(conv_norm(affine=False)), RGB, {("0.0", "0.1")}),
    "without both": (lambda: pooled(conv_norm(bias=False, affine=False)), RGB, {("0.0", "0.1")}),
    "large eps": (lambda: pooled(conv_norm(eps=0.5)), RGB, {("0.0", "0.1")}),
    "statistics of the batch": (
        lambda: pooled(conv_norm(track_running_stats=False)),
        RGB,
        set(),
    ),
    "two in a row": (
        lambda: pooled(
            nn.Sequential(*conv_norm(), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))
        ),
        RGB,
        {("0.0", "0.1"), ("0.3", "0.4")},
    ),
    "grouped": (
        lambda: pooled(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6))),
        RGB,
        {("0.0", "0.1")},
    ),
    "padded": (
        lambda: pooled(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))),
        RGB,
        {("0.0", "0.1")},
    ),
    "linear": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
        images(4, 6),
        {("0", "1")},
    ),
    "linear over a sequence": (  # batch norm is over dim 1, the linear layer over the last
        lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)),
        images(4, 6, 6),
        set(),
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.Flatten()),
        images(2, 3, 5),
        {("0", "1")},
    ),
    "three dimensions": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.Flatten()),
        images(2, 2, 3, 3, 3),
        {("0", "1")},
    ),
    "transposed": (
        lambda: pooled(nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4))),
        RGB,
        set(),
    ),
    "read by the sum": (lambda: read_twice(lambda y, z: y + z), RGB, set()),
    "read as a gate": (lambda: read_twice(lambda y, z: y.sigmoid() * z), RGB, set()),
    "shape read": (lambda: read_twice(lambda y, z: z * y.shape[1]), RGB, {("conv", "norm")}),
    "ReLU between": (
        lambda: pooled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))),
        RGB,
        set(),
    ),
    "ReLU in place between": (
        lambda: pooled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4))),
        RGB,
        set(),
    ),
    "function in place between": (
        lambda: Wired(
            lambda m, x: m.norm(m.conv(x).add_(1.0)).mean((2, 3)),
            conv=nn.Conv2d(3, 4, 3),
            norm=nn.BatchNorm2d(4),
        ),
        RGB,
        set(),
    ),
    "norm first": (
        lambda: pooled(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))),
        RGB,
        set(),
    ),
    "norm of the input": (lambda: pooled(nn.BatchNorm2d(3)), RGB, set()),
    "shared layer": (shared_layer, RGB, set()),
    "shared norm": (shared_norm, RGB, set()),
    "tied weight": (tied_weight, RGB, set()),
    "tied bias": (tied_bias, RGB, set()),
    "two norms of one layer": (
        lambda: Wired(
            lambda m, x: (m.one(y := m.conv(x)) + m.two(y)).mean((2, 3)),
            conv=nn.Conv2d(3, 4, 3),
            one=nn.BatchNorm2d(4),
            two=nn.BatchNorm2d(4),
        ),
        RGB,
        set(),
    ),
    "norm that does more": (
        lambda: pooled(nn.Sequential(nn.Conv2d(3, 4, 3), NormAndReLU(4))),
        RGB,
        set(),
    ),
    "layer that does more": (
        lambda: pooled(nn.Sequential(Standardized(3, 4, 1), nn.BatchNorm2d(4))),
        RGB,
        set(),
    ),
    "weight read elsewhere": (
        lambda: Wired(
            lambda m, x: m.norm(m.conv(x)).mean((2, 3)) + m.conv.weight.sum(),
            conv=nn.Conv2d(3, 4, 3),
            norm=nn.BatchNorm2d(4),
        ),
        RGB,
        set(),
    ),
    "one of two is wrong": (
        lambda: pooled(
            nn.Sequential(nn.Conv2d(3, 4, 3), NormAndReLU(4), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))
        ),
        RGB,
        {("0.2", "0.3")},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_pairs_are_those_by_hand_and_change_nothing(name: str) -> None:
    make, x, pairs = CASES[name]
    network = enliven_(make())
    before, dense = bits_of(network), forward(network, x)
    with torch.inference_mode():
        found = find_pairs(network, x)
    assert set(found) == {Pair(layer, norm) for layer, norm in pairs}
    assert len(found) == len(pairs)
    skeleton = Skeleton(network)
    fold_(skeleton, found)
    assert relative_difference(dense, forward(skeleton.module, x)) < 1e-5
    assert unchanged(network, before)
    assert not any(m._forward_hooks for m in network.modules())


def test_folded_numbers_by_hand() -> None:
    """g / s = 3 / 2, so weight 4 becomes 6, and (5 - 7) * 1.5 + 11 = 8 the bias."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=1.0)).eval()
    values = {
        "0.weight": torch.tensor([[[[4.0]]]]),
        "0.bias": torch.tensor([5.0]),
        "1.weight": torch.tensor([3.0]),
        "1.bias": torch.tensor([11.0]),
        "1.running_mean": torch.tensor([7.0]),
        "1.running_var": torch.tensor([3.0]),
        "1.num_batches_tracked": torch.tensor(0),
    }
    network.load_state_dict(values)
    skeleton = Skeleton(network)
    fold_(skeleton, [Pair("0", "1")])
    layer = inner(skeleton.module, "0")
    assert layer.weight.item() == 6.0
    assert layer.bias.item() == 8.0
    assert skeleton.module(torch.full((1, 1, 1, 1), 2.0)).item() == 20.0


@pytest.mark.parametrize("model", ["digits_cnn", "resnet20", "mobilenet_v2", "vgg16_bn"])
def test_every_norm_of_the_zoo_is_folded_for_every_cut(model: str) -> None:
    x = images(2, 1, 8, 8) if model == "digits_cnn" else images(2, 3, 32, 32)
    arguments = {} if model == "digits_cnn" else {"width": 0.2}
    network = enliven_(build(model, **arguments))
    pairs = find_pairs(network, x)
    skeleton = Skeleton(network)
    assert {pair.norm for pair in pairs} == set(skeleton.norms)
    plan = random_plan(trace(network, x, verify=False), 0)
    skeleton.load(plan)
    fold_(skeleton, pairs)
    assert relative_difference(forward(cut(network, plan), x), forward(skeleton.module, x)) < 1e-5


def test_fold_uses_the_statistics_of_now_and_ends_with_the_next_plan() -> None:
    network, x = enliven_(chain()), images(2, 3, 8, 8)
    dense = forward(network, x)
    skeleton = Skeleton(network)
    mean, var = torch.full((4,), 0.3), torch.full((4,), 2.0)
    skeleton.put_statistics("1", mean, var)
    expected = forward(skeleton.module, x)
    fold_(skeleton, [Pair("0", "1")])
    assert relative_difference(expected, forward(skeleton.module, x)) < 1e-5
    assert relative_difference(expected, dense) > 0.01
    skeleton.reset()
    assert same_bits(forward(skeleton.module, x), dense)


def test_bias_that_was_not_there_goes_again() -> None:
    network, x = enliven_(pooled(conv_norm(bias=False))), RGB
    dense = forward(network, x)
    skeleton = Skeleton(network)
    for _ in range(2):
        fold_(skeleton, [Pair("0.0", "0.1")])
        assert skeleton.submodule("0.0").bias is not None
        skeleton.reset()
        assert skeleton.submodule("0.0").bias is None
        assert same_bits(forward(skeleton.module, x), dense)
    assert network.get_submodule("0.0").bias is None


def norm_of_two_readers() -> nn.Module:
    return Wired(
        lambda m, x: m.out((y := m.stem(x)) + m.conv(m.norm(y).relu())).mean((2, 3)),
        stem=nn.Conv2d(3, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        conv=nn.Conv2d(4, 4, 3, padding=1),
        out=nn.Conv2d(4, 5, 1),
    )


def test_a_fresh_norm_behind_a_layer_with_two_readers_is_no_pair() -> None:
    """As it is, a fresh norm changes nothing and folds anywhere; a candidate's statistics would not."""
    assert find_pairs(norm_of_two_readers().eval(), RGB) == ()


def test_layers_whose_weight_is_computed_are_no_pair() -> None:
    for wrap in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        network = pooled(nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))).eval()
        assert find_pairs(network, RGB) == ()


@pytest.mark.parametrize("tokens", [8, 10])
def test_a_norm_over_tokens_behind_a_linear_layer_is_no_pair(tokens: int) -> None:
    network = nn.Sequential(nn.Linear(8, 10), nn.BatchNorm1d(tokens)).eval()
    assert find_pairs(network, torch.randn(4, tokens, 8)) == ()
