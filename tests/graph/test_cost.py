"""Costs by formula equal costs counted on the cut network, for any choice of units."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.graph import Trace, cut, first_sample, trace
from prunus.meter import count_macs, count_params, file_size_bytes
from prunus.zoo import build, is_text, zoo_names
from tests.helpers import FusedAttention, GroupedQueries, images, pooled, random_choice

CIFAR = images(2, 3, 32, 32)


PLANS = 20


def agree(network: nn.Module, found: Trace, x: Any, seed: int) -> None:
    choice = random_choice(found, seed, share=0.2 + 0.6 * (seed % 4) / 3)
    small, cost = cut(network, found.plan(choice)), found.cost(choice)
    measured = count_macs(small, first_sample(x))
    assert (cost.macs, cost.params) == (measured.macs, count_params(small))
    assert (cost.effective_macs, cost.nonzero_params) == (cost.macs, cost.params)
    assert measured.uncounted == ()


@pytest.mark.parametrize("model", [name for name in zoo_names() if not is_text(name)])
def test_formula_equals_count_on_the_zoo(model: str) -> None:
    x = images(2, 1, 8, 8) if model == "digits_cnn" else CIFAR
    network = build(model).eval()
    found = trace(network, x, verify=False)
    network.to("meta")  # shapes decide both numbers: no weights need be copied
    for seed in range(PLANS):
        agree(network, found, x.to("meta"), seed)


@pytest.mark.parametrize("model", ["bert_tiny", "textcnn"])
def test_formula_equals_count_on_networks_for_texts(model: str) -> None:
    pieces = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    x = {"input_ids": pieces, "attention_mask": torch.ones_like(pieces)}
    network = build(model, vocab_size=90, hidden=64).eval()
    found = trace(network, x, verify=False)
    for seed in range(PLANS):
        agree(network, found, x, seed)


@pytest.mark.parametrize("model", ["digits_cnn", "resnet20", "mobilenet_v2"])
def test_the_file_is_never_larger_than_predicted(model: str) -> None:
    x = images(2, 1, 8, 8) if model == "digits_cnn" else CIFAR
    network = build(model).eval()
    found = trace(network, x, verify=False)
    for seed in range(5):
        choice = random_choice(found, seed, share=0.5)
        slack = found.size_bytes(choice) - file_size_bytes(cut(network, found.plan(choice)))
        # A few digits of shape and offsets in each tensor's entry of the header.
        assert 0 <= slack <= 8 + 12 * len(found.stored)


SMALL: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 5, stride=3), nn.Flatten(), nn.Linear(24, 2)),
        images(2, 3, 8, 8),
    ),
    "grouped": (
        lambda: pooled(
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 2, 1))
        ),
        images(2, 3, 8, 8),
    ),
    "transposed": (
        lambda: pooled(
            nn.Sequential(
                nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 3, stride=2), nn.Conv2d(6, 2, 1)
            )
        ),
        images(2, 3, 8, 8),
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(24, 2)),
        images(2, 3, 8),
    ),
    "attention": (lambda: FusedAttention(4), images(2, 5, 6)),
    "grouped queries": (GroupedQueries, images(2, 5, 6)),
}


@pytest.mark.parametrize("name", SMALL)
def test_formula_equals_count_on_small_networks(name: str) -> None:
    make, x = SMALL[name]
    network = make().eval()
    found = trace(network, x)
    assert found.cuttable
    for seed in range(20):
        agree(network, found, x, seed)


@pytest.mark.parametrize("name", ["Bert", "Llama", "ConvNext"])
def test_formula_equals_count_on_transformers(name: str, architectures: Any) -> None:
    network, inputs = architectures(name)
    found = trace(network, inputs, verify=False)
    for seed in range(3):
        agree(network, found, inputs, seed)


# Parameters; MACs by hand from the layer tables (convolutions and linear layers).
DENSE = {
    "resnet56": ({}, 853_018, 125_485_696),
    "vgg16_bn": ({}, 14_728_266, 313_201_664),
    "resnet18": ({}, 11_173_962, 555_422_720),
    "mobilenet_v2": ({"num_classes": 100}, 2_351_972, 24_576_512),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", DENSE)
def test_dense_costs_are_those_of_the_papers(model: str) -> None:
    arguments, params, macs = DENSE[model]
    found = trace(build(model, **arguments), CIFAR, verify=False)
    assert found.cost({}).params == params
    assert found.cost({}).macs == macs


def test_dense_macs_of_vgg_by_its_layer_table() -> None:
    """Simonyan & Zisserman 2015, table 1, configuration D at 32x32, one linear layer 512 to 10."""
    widths = [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3]
    macs, before, side = 5120, 3, 32
    for stage in widths:
        for width in stage:
            macs, before = macs + side * side * 9 * before * width, width
        side //= 2
    assert macs == DENSE["vgg16_bn"][2]


def test_dense_macs_of_resnet56_by_its_layer_table() -> None:
    """He et al. 2016, section 4.2: 1 + 18 convolutions at 32x32, 18 at 16x16, 18 at 8x8, linear."""
    macs = 1024 * 9 * 3 * 16 + 18 * 1024 * 9 * 16 * 16 + 640
    macs += 256 * 9 * (16 * 32 + 17 * 32 * 32) + 64 * 9 * (32 * 64 + 17 * 64 * 64)
    assert macs == DENSE["resnet56"][2]


def test_cost_of_one_layer_by_hand() -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    found = trace(network, images(2, 5, 6))
    keep = torch.tensor([True, False, True, True]).numpy()
    cost = found.cost({"0": keep})
    assert cost.macs == 5 * (6 * 3 + 3 * 2)  # five tokens of one sample
    assert cost.params == (6 * 3 + 3) + (3 * 2 + 2)
    assert cost.uncounted == ()
