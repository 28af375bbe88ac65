"""Rounding to int8 with one scale for each row of a weight."""

import torch
from torch import Tensor

LEVELS = 127
"""On either side of zero."""


def by_row(weight: Tensor, *, halves: bool = False) -> tuple[Tensor, Tensor]:
    """Levels int8 ``[rows, width]`` and scales ``[rows]``, symmetric about 0.

    Args:
        weight: ``[rows, width]``, any floats.
        halves: Scales are float16 where that holds all of them to 11 bits: then the largest number of
            a row is wrong by a sixteenth of a level more.
    """
    weight = weight.detach().float()
    scale = row_scales(weight, LEVELS)
    if halves and halves_in_full(scale):
        scale = scale.half()
    levels = (weight / scale.float().unsqueeze(1)).round().clamp(-LEVELS, LEVELS)
    return levels.to(torch.int8), scale


def halves_in_full(scale: Tensor) -> bool:
    """Whether float16 holds each of positive numbers to 11 bits."""
    half = torch.finfo(torch.float16)
    return bool(((scale >= half.tiny) & (scale <= half.max)).all())


def row_scales(weight: Tensor, levels: int) -> Tensor:
    """Steps ``[rows]`` with which the largest of each row is ``levels`` from zero; 1 for rows of zeros."""
    scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / levels
    scale[weight.count_nonzero(dim=1) == 0] = 1.0
    return scale
