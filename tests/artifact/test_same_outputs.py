"""A source that builds another architecture with the same tensors is told by small outputs, too."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.artifact import save
from prunus.errors import PlanMismatchError
from prunus.records import Source
from prunus.zoo import load_source

FILLED = """
import random
import torch
from torch import nn


class Filled(nn.Linear):
    # Class 0 is ruled out, classes 1 and 2 are nearly alike, class 3 is what is left of them.
    def __init__(self, act="relu", backwards=False, single=False):
        super().__init__(64, 2)
        self.act, self.backwards, self.single = act, backwards, single

    def forward(self, x):
        if self.single and x.dtype != torch.float32:
            raise TypeError("float32 alone")
        x, weight = getattr(torch, self.act)(x), self.weight
        if self.backwards:  # the same sums, rounded otherwise
            x, weight = x.flip(1), weight.flip(1)
        y = x @ weight.T + random.random()
        return torch.cat([y[:, :1] * 0 - 1e9, 640 * y, y[:, 1:] - y[:, :1]], 1)
"""
BOXES = """
import torch
from torch import nn


class Boxes(nn.Linear):
    def __init__(self, act="relu"):
        super().__init__(16, 4)
        self.act = act

    def forward(self, x):
        y = super().forward(x)
        return torch.cat([1e7 * y[:, :2], getattr(torch, self.act)(y[:, 2:])], 1)
"""


def filled(folder: Path, **arguments: Any) -> Source:
    (folder / "filled.py").write_text(FILLED, encoding="utf-8")
    return Source(model=f"{folder}/filled.py:Filled", arguments=arguments)


@pytest.mark.parametrize("single", [False, True])
def test_small_outputs_beside_large_ones_tell_another_architecture(
    tmp_path: Path, single: bool
) -> None:
    """And rounding is none, in numbers of which it leaves few digits."""
    torch.manual_seed(0)
    network = load_source(filled(tmp_path, single=single))
    with torch.no_grad():
        weight = network.get_parameter("weight")
        weight[1] = weight[0] + 1e-4 * weight[1]
    inputs, state = torch.randn(8, 64), random.getstate()
    same = filled(tmp_path, backwards=True, single=single)
    save(tmp_path / "a", network, source=same, example_inputs=inputs)
    with pytest.raises(PlanMismatchError, match="builds another network"):
        save(
            tmp_path / "b",
            network,
            source=filled(tmp_path, act="tanh", single=single),
            example_inputs=inputs,
        )
    assert random.getstate() == state


def test_small_outputs_that_large_ones_have_no_part_in_tell_another_architecture(
    tmp_path: Path,
) -> None:
    """Scores beside boxes a million times as large, which the activation leaves alone."""
    (tmp_path / "boxes.py").write_text(BOXES, encoding="utf-8")

    def source(act: str) -> Source:
        return Source(model=f"{tmp_path}/boxes.py:Boxes", arguments={"act": act})

    torch.manual_seed(0)
    network, inputs = load_source(source("relu")), torch.randn(8, 16)
    save(tmp_path / "a", network, source=source("relu"), example_inputs=inputs)
    with pytest.raises(PlanMismatchError, match="builds another network"):
        save(tmp_path / "b", network, source=source("tanh"), example_inputs=inputs)
