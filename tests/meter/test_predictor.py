"""A network as a predictor: logits out, modes and gradients left alone."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.meter import Predictor, as_predictor, measure_latency, peak_memory_bytes
from tests.helpers import KeptTable


class Returns(nn.Module):
    """Wraps its logits in what `wrap` makes of them."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.wrap = wrap

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return self.wrap(self.layer(x) * scale)


@pytest.mark.parametrize(
    "wrap",
    [lambda y: y, lambda y: (y, None), lambda y: OrderedDict(loss=None, logits=y)],
    ids=["tensor", "tuple", "mapping"],
)
def test_logits_are_found_whatever_holds_them(wrap: Any) -> None:
    network = Returns(wrap)
    predictor = as_predictor(network)
    x = torch.rand(4, 3)
    expected = network.layer(x) * 2
    assert isinstance(predictor, Predictor)
    for inputs in ((x, 2.0), [x, 2.0], {"x": x, "scale": 2.0}):
        logits = predictor(inputs)
        torch.testing.assert_close(logits, expected.detach())
        assert not logits.requires_grad


def test_dropout_is_off_and_modes_come_back() -> None:
    network = nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 2).eval())
    x = torch.ones(5, 3)
    torch.testing.assert_close(as_predictor(network)(x), network[1](x).detach())
    assert [module.training for module in network.modules()] == [True, True, False]


def test_device_is_that_of_the_parameters() -> None:
    assert as_predictor(nn.Linear(2, 2, device="meta")).device == torch.device("meta")
    assert as_predictor(nn.Identity()).device == torch.device("cpu")


def test_an_output_without_logits_is_refused() -> None:
    with pytest.raises(InputError, match="network returned dict"):
        as_predictor(Returns(lambda y: {"hidden": y}))(torch.zeros(1, 3))


@pytest.mark.parametrize(
    "measure",
    [
        lambda network, x: as_predictor(network)(x),
        lambda network, x: measure_latency(network, x, batch=2, warmup=0, repeats=1),
        peak_memory_bytes,
    ],
    ids=["predictor", "latency", "memory"],
)
def test_a_network_that_was_measured_can_be_trained(measure: Callable[..., object]) -> None:
    network, x = KeptTable(3, 1), torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    measure(network, x)
    torch.autograd.backward(network(x).sum())
    # d/dw of 1 * (w x_0 + b) + 2 * (w x_1 + b)
    assert network.head.weight.grad is not None
    assert network.head.weight.grad.tolist() == [[21.0, 42.0, 63.0]]
