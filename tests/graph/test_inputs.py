"""Inputs and outputs of networks: which are of a batch, and which are the logits."""

from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.errors import InputError
from prunus.graph import first_sample
from prunus.graph.inputs import first_samples, logits_in

LOGITS, OTHER = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0, 5.0]])
Auxiliary = namedtuple("Auxiliary", ["aux", "logits"])  # as torchvision's


def test_what_is_no_batch_keeps_all_of_its_entries() -> None:
    images, scale, steps = torch.rand(8, 3, 4, 4), torch.rand(3), torch.arange(5)
    found = first_samples({"x": images, "scale": scale, "more": [steps, torch.ones(8)]}, 2)
    assert isinstance(found, dict)
    assert torch.equal(found["x"], images[:2])
    assert torch.equal(found["scale"], scale)
    assert torch.equal(found["more"][0], steps)
    assert torch.equal(found["more"][1], torch.ones(2))


def test_first_sample_is_the_first_of_first_samples() -> None:
    images, time = torch.rand(8, 3), torch.tensor(0.5)
    assert torch.equal(first_samples(images, 1), images[:1])  # type: ignore[arg-type]
    for found in (first_sample((images, time, "mode")), first_samples((images, time, "mode"), 1)):
        assert isinstance(found, tuple)
        assert torch.equal(found[0], images[:1])
        assert found[1:] == (time, "mode")


def test_more_samples_than_there_are_leave_the_batch_as_it_is() -> None:
    images = torch.rand(3, 2)
    assert torch.equal(first_samples(images, 16), images)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, OTHER),
        [LOGITS],
        {"hidden": OTHER, "logits": LOGITS},
        OrderedDict(loss=None, logits=LOGITS),
        SimpleNamespace(hidden=OTHER, logits=LOGITS),
        Auxiliary(aux=OTHER, logits=LOGITS),
    ],
    ids=["tensor", "tuple", "list", "dict", "mapping", "object", "named tuple"],
)
def test_logits_are_found_in_what_a_network_returns(output: Any) -> None:
    found: Tensor = logits_in(output)
    assert found is LOGITS


@pytest.mark.parametrize(
    "output",
    [None, (), (None, LOGITS), {"hidden": LOGITS}, SimpleNamespace(hidden=LOGITS), 3.0],
    ids=["none", "empty", "first is none", "dict", "object", "number"],
)
def test_an_output_without_logits_is_refused(output: Any) -> None:
    with pytest.raises(InputError, match="it must return logits, as a tensor, as the first entry"):
        logits_in(output)
