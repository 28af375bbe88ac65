"""A network as a predictor: logits out, modes and gradients left alone."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.meter import Predictor, as_predictor


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
    with pytest.raises(InputError, match="NoneType"):
        as_predictor(Returns(lambda y: {"hidden": y}))(torch.zeros(1, 3))
