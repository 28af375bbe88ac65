"""Inputs that a run is stated for: some real samples, and of texts the greatest length."""

from typing import Any

import torch
from torch import Tensor

from prunus.data import DataSplits
from prunus.graph import Inputs
from prunus.graph.inputs import first_samples

CERTIFICATE_SAMPLES = 16
PIECES, MASK = "input_ids", "attention_mask"
"""Of the inputs of a network that reads texts, int64 ``[samples, length]`` each."""


def stated(inputs: Inputs, samples: int, data: DataSplits) -> Inputs:
    """The samples that costs are stated for: texts all have the greatest length that data allows.

    Shorter ones are repeated until they are as long, so that no position is padding.
    """
    first = first_samples(inputs, samples)
    length = data.max_length
    if length is None or not isinstance(first, dict) or PIECES not in first:
        return first
    ids = first[PIECES]
    repeated = ids.repeat(1, -(-length // ids.shape[1]))[:, :length]
    return {**first, PIECES: repeated, MASK: torch.ones_like(repeated)}


def shapes(inputs: Inputs) -> Any:
    """Shapes of example inputs without their samples: costs are stated for one of them."""
    if isinstance(inputs, Tensor):
        return " x ".join(map(str, inputs.shape[1:]))
    if isinstance(inputs, tuple | list):
        return [shapes(value) for value in inputs if isinstance(value, Tensor)]
    return {name: shapes(value) for name, value in inputs.items() if isinstance(value, Tensor)}
