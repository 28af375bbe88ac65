"""Rounding of weights to a grid so that what a layer says changes least, by the inputs it reads.

References:
    Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
    Pre-trained Transformers", ICLR 2023, algorithm 1 (https://arxiv.org/abs/2210.17323). Columns in the
    order of their inputs' power, as its authors' code has it (``act_order``).
"""

import torch
from torch import Tensor

from prunus.quantize.by_row import row_scales

_DAMPING = 0.01  # of the mean of the diagonal, as in the paper
_TRIES = 4  # with ten times the damping of the one before
_BLOCK = 128


def gptq(weight: Tensor, moments: Tensor, levels: int) -> Tensor | None:
    """Weights on the grid ``scale * (-levels .. levels)``, ``scale = max|row| / levels``.

    Columns are rounded one after the other; the columns to come take up what each error does to the
    outputs (eq. 3). The largest weight of a row keeps its level, so that whoever rounds the result
    to as many levels, by the largest of a row, finds this very grid.

    Args:
        weight: ``[out, in]``, float32.
        moments: Sum over inputs of ``x x^T``, ``[in, in]``.
        levels: On either side of zero.

    Returns:
        Weights ``[out, in]``, float32; None where inputs tell nothing.
    """
    scale = row_scales(weight, levels)
    found = _upper(moments)
    if found is None:
        return None
    order, upper = found
    left = (weight / scale.unsqueeze(1))[:, order]
    largest = left.abs().argmax(dim=1)
    kept = left.gather(1, largest.unsqueeze(1)).squeeze(1).sign() * levels
    rounded = torch.empty_like(left)
    for begin in range(0, left.shape[1], _BLOCK):
        end = min(begin + _BLOCK, left.shape[1])
        errors = torch.empty(len(left), end - begin)
        for column in range(begin, end):
            value = left[:, column]
            level = value.round().clamp(-levels, levels)
            rounded[:, column] = torch.where(largest == column, kept, level)
            errors[:, column - begin] = (value - rounded[:, column]) / upper[column, column]
            left[:, column:end] -= torch.outer(errors[:, column - begin], upper[column, column:end])
        left[:, end:] -= errors @ upper[begin:end, end:]
    out = torch.empty_like(rounded)
    out[:, order] = rounded
    return out * scale.unsqueeze(1)


def nearest(weight: Tensor, levels: int) -> Tensor:
    """Weights ``[out, in]`` on the same grid, each rounded by itself."""
    scale = row_scales(weight, levels)
    return (weight / scale.unsqueeze(1)).round() * scale.unsqueeze(1)


def _upper(moments: Tensor) -> tuple[Tensor, Tensor] | None:
    """Order of columns, and the upper Cholesky factor of the inverse of their damped moments."""
    if not bool(torch.isfinite(moments).all()) or not bool(moments.any()):
        return None
    order = moments.diagonal().argsort(descending=True, stable=True)
    ordered = moments.double()[order][:, order]
    mean = ordered.diagonal().mean()
    for attempt in range(_TRIES):
        damped = ordered.clone()
        damped.diagonal().add_(mean * _DAMPING * 10**attempt)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if bool(failed):
            continue
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not bool(failed):
            return order, upper.float()
    return None
