"""How far two outputs of a network are apart, relative to what is computed there."""

from typing import Any

import torch
from torch import Tensor

from prunus.graph.inputs import output_tensors


def relative_difference(reference: Any, other: Any) -> float:
    """The largest ``max|a - b| / max|a|`` of the floating outputs.

    Returns:
        The difference; infinite where shapes or NaNs differ, or where there is nothing to compare.
    """
    left, right = _compared(reference), _compared(other)
    if [t.shape for t in left] != [t.shape for t in right]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if a.numel()]
    return max((_difference(a, b) for a, b in pairs), default=float("inf"))


def same_whole_numbers(one: Any, other: Any) -> bool:
    """Whether outputs that are no floating numbers, such as classes, are equal."""
    left, right = (
        [t for t in dense_tensors(out) if not (t.is_floating_point() or t.is_complex())]
        for out in (one, other)
    )
    return len(left) == len(right) and all(map(torch.equal, left, right))


def dense_tensors(output: Any) -> list[Tensor]:
    """All tensors in an output; sparse ones dense, nested ones as the tensors they are made of."""
    found: list[Tensor] = []
    for tensor in output_tensors(output):
        if tensor.is_nested:
            found += tensor.unbind()
        else:
            found.append(tensor if tensor.layout == torch.strided else tensor.to_dense())
    return found


def _compared(output: Any) -> list[Tensor]:
    """Floating outputs; of complex ones both parts."""
    found = [torch.view_as_real(t) if t.is_complex() else t for t in dense_tensors(output)]
    return [t for t in found if t.is_floating_point()]


def _difference(a: Tensor, b: Tensor) -> float:
    if bool((a.isnan() != b.isnan()).any()):
        return float("inf")
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    if not finite.any():
        return float("inf")  # nothing to compare proves nothing
    scale = float(a[finite].abs().max())
    difference = float((a - b)[finite].abs().max())
    return difference / scale if scale > 0 else difference
