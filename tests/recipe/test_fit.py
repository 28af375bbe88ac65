"""Whether a network and its data fit: what does not is named before anything is computed."""

import re

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunus.data import from_datasets
from prunus.errors import InputError
from prunus.recipe import (
    compress,
)
from prunus.zoo import build
from tests.recipe.subjects import STEPS, few_digits, trained_cnn


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (
            torch.float64,
            "is in float64 and its inputs are in float32 (float64 in data sets is read as float32)",
        ),
        (
            torch.float16,
            "the network is in float16 and its inputs are in float32: give it as network.float()",
        ),
    ],
)
def test_a_network_in_another_format_than_its_inputs_is_told_so(
    dtype: torch.dtype, said: str
) -> None:
    data = few_digits()
    with pytest.raises(InputError, match=re.escape(said)):
        compress(build("digits_cnn").to(dtype), STEPS, data, latency=None)
    assert data.test.evaluations == 0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_refused_by_the_data(number: float) -> None:
    """Not as a network of which nothing can be cut."""
    images = torch.full((40, 1, 8, 8), number), torch.rand(20, 1, 8, 8)
    train, test = (TensorDataset(some, torch.arange(len(some)) % 10) for some in images)
    data = from_datasets(train, test)
    with pytest.raises(
        InputError, match="inputs of the first training samples hold NaN or infinite"
    ):
        compress(trained_cnn(), STEPS, data, latency=None)


def test_classes_that_are_not_numbered_from_0_are_told() -> None:
    train, test = (TensorDataset(torch.rand(n, 64), torch.arange(n) % 3 + 1) for n in (40, 20))
    network = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(InputError, match="num_classes=4, or number the classes from 0: .* is 1"):
        compress(network, STEPS, from_datasets(train, test), latency=None)
