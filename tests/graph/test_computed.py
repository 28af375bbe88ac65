"""Layers that compute their weight: sizes are read from them, and nothing is left behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from prunus.graph import certify, cut, network_shape, trace
from prunus.graph.computed import weight_of
from prunus.graph.config import sync_config_
from prunus.plan import Plan
from tests.helpers import all_but


class Counting(nn.Module):
    """Doubles a weight, and counts how often, in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reads", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.get_buffer("reads").add_(1)
        return weight * 2


class Dropped(nn.Module):
    """Leaves weights out by chance, in training alone."""

    def forward(self, weight: Tensor) -> Tensor:
        return nn.functional.dropout(weight, 0.5, training=self.training)


def dropped(layer: nn.Linear) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Dropped())


def counting(layer: nn.Linear) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Counting())


def network_with(wrap: Callable[[Any], nn.Module], width: int = 5) -> nn.Sequential:
    """Linear layers 6, 8, 16, ``width``, 3; the weight from 16 to ``width`` is computed."""
    return nn.Sequential(
        *(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU()),
        *(wrap(nn.Linear(16, width)), nn.ReLU(), nn.Linear(width, 3)),
    )


def drawn() -> Tensor:
    return torch.randn((4, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wrap", [spectral_norm, weight_norm, counting, dropped])
def test_an_empty_plan_changes_nothing(wrap: Callable[[Any], nn.Module], *, training: bool) -> None:
    network = network_with(wrap).train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shape, drawn_before = network_shape(network), torch.get_rng_state()
    same = cut(network, Plan(source=shape, result=shape))
    assert torch.equal(torch.get_rng_state(), drawn_before)
    for found in (network, same):
        assert all(torch.equal(v, before[n]) for n, v in found.state_dict().items())
        assert {m.training for m in found.modules()} == {training}


@pytest.mark.parametrize("training", [True, False])
def test_layers_beside_one_with_a_spectral_norm_are_cut(*, training: bool) -> None:
    # As wide as this, the norm is not found to the last digit before the cut.
    network = network_with(spectral_norm, width=64).train(training)
    found = trace(network, drawn())
    assert [g.name for g in found.cuttable] == [
        "0"
    ]  # what the norm reads has operations of its own
    plan = found.plan({"0": all_but(8, 3)})
    assert certify(network, found, plan).passed


def test_sizes_of_a_layer_with_a_weight_norm_follow() -> None:
    network = network_with(weight_norm).eval()
    found = trace(network, drawn())
    outputs, inputs = "4.parametrizations.weight.original1", "2"
    plan = found.plan({outputs: all_but(5, 0), inputs: all_but(16, 3)})
    small: Any = cut(network, plan)[4]  # type: ignore[index]
    assert (small.in_features, small.out_features) == (15, 4)


def test_a_config_is_kept_true_without_a_read_of_the_network_that_is_cut() -> None:
    class Config:
        hidden_size = 8

        def to_dict(self) -> dict[str, int]:
            return {"hidden_size": self.hidden_size}

    network = network_with(counting)
    network.append(spectral_norm(nn.Embedding(7, 8))).train()
    network.config = Config()  # type: ignore[assignment]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shape = network_shape(network)
    sync_config_(cut(network, Plan(source=shape, result=shape)), network)
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())


def test_the_weight_that_a_layer_has_is_found_and_a_computed_one_is_right() -> None:
    layer = nn.Linear(4, 3)
    plain = layer.weight
    assert weight_of(layer) is plain
    doubled = weight_of(counting(layer))
    assert doubled is not None
    assert torch.equal(doubled, plain * 2)
    assert weight_of(nn.ReLU()) is weight_of(nn.BatchNorm2d(3, affine=False)) is None
