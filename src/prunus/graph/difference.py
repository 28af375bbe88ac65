"""How far two outputs of a network are apart, relative to what is computed there.

One large value beside small ones must not hide what is wrong with them: ``-1e9`` where an action is
illegal, boxes in pixels beside scores. Nor must rounding of a large value, which a small difference of
large numbers is left with, pass for an error of its own. So every value is measured by the largest of
three: itself, the typical size of its column, and a share of the largest in the tensor.
"""

from typing import Any

import torch
from torch import Tensor

from prunus.graph.inputs import output_tensors

FINE = 1e-3
"""Share for a verdict in float64: at a limit of 1e-10 a difference of 1e-13 of the largest value passes
wherever it is, some thousand times the rounding unit."""

FIRST = 1e-6
"""Share for a verdict in float32 that float64 may overrule: at a limit of 1e-5 one of 1e-11 passes. It is
far below float32's rounding unit, for a column may be computed apart from the large ones, and a
difference that passes here is not looked at again."""

ROUGH = 0.1
"""Share where float32 alone has to do: at a limit of 1e-5 a difference of 1e-6 of the largest value
passes, some ten times the rounding unit."""

_VALUES = 1000  # of a column that its typical size is taken from
_FAR = 10.0  # a fill stands so much above all that is computed
_APART = 1e6  # and one that is there only once so much: float32 could not compute with both


def relative_difference(reference: Any, other: Any, *, share: float = 1.0) -> float:
    """The largest difference of the floating outputs, relative to their size.

    ``|a - b|`` is taken relative to the largest of ``|a|``, the typical size of its columns (along dim
    1, along the last dim) and ``share`` times the largest ``|a|`` of the tensor. Sizes leave out
    values that are filled in: the same in both, and far above all others.

    Args:
        reference: A tensor, or whatever a network returns.
        other: The same of another network.
        share: 1: all of a tensor has one size, ``max|a|``. Below 1 a column of small values is measured
            by itself, as far as that: rounding of large values exceeds it where values cancel.

    Returns:
        The difference; infinite where shapes or NaNs differ, or where there is nothing to compare.
        Absolute in tensors that are zero throughout in ``reference``.
    """
    left, right = _compared(reference), _compared(other)
    if [t.shape for t in left] != [t.shape for t in right]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if a.numel()]
    return max((_difference(a, b, share) for a, b in pairs), default=float("inf"))


def same_whole_numbers(one: Any, other: Any) -> bool:
    """Whether outputs that are no floating numbers, such as classes, are equal."""
    left, right = (
        [t for t in dense_tensors(out) if not (t.is_floating_point() or t.is_complex())]
        for out in (one, other)
    )
    return len(left) == len(right) and all(map(torch.equal, left, right))


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree in data type, layout, shape and every value; NaN agrees with NaN."""
    if (one.dtype, one.layout, one.shape) != (other.dtype, other.layout, other.shape):
        return False
    if one.device != other.device:
        one, other = one.cpu(), other.cpu()
    a, b = plain_numbers(one.detach()), plain_numbers(other.detach())
    return bool(((a == b) | ((a != a) & (b != b))).all())  # noqa: PLR0124 (x != x is NaN)


def dense_tensors(output: Any) -> list[Tensor]:
    """All tensors in an output; sparse ones dense, nested ones as the tensors they are made of."""
    found: list[Tensor] = []
    for tensor in output_tensors(output):
        if tensor.is_nested:
            found += tensor.unbind()
        else:
            found.append(plain_numbers(tensor))
    return found


def plain_numbers(tensor: Tensor) -> Tensor:
    """A tensor as numbers side by side: sparse and quantized ones cannot be compared."""
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _compared(output: Any) -> list[Tensor]:
    """Floating outputs, in float32 or better; of complex ones both parts."""
    found = [torch.view_as_real(t) if t.is_complex() else t for t in dense_tensors(output)]
    found = [t.detach() for t in found if t.is_floating_point()]
    return [t if t.dtype == torch.float64 else t.float() for t in found]


def _difference(a: Tensor, b: Tensor, share: float) -> float:
    finite = a.isfinite() & b.isfinite()
    if not finite.all():
        if bool((a.isnan() != b.isnan()).any()):
            return float("inf")
        if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
            return float("inf")
        if not finite.any():
            return float("inf")  # nothing to compare proves nothing
        a, b = (t.masked_fill(~finite, 0.0) for t in (a, b))
    gap = (a - b).abs_()
    if not gap.any():
        return 0.0
    size = a.abs()
    computed = _without_fills(a, b, size)
    scale = torch.maximum(size, share * computed.max())
    if share < 1:
        scale = torch.maximum(scale, _typical(computed), out=scale)
    unknown = scale == 0
    return float(gap.div_(scale.masked_fill_(unknown, 1.0)).max())


def _without_fills(a: Tensor, b: Tensor, size: Tensor) -> Tensor:
    """Sizes, zero where a number was filled in: to float32 the same in both, and nothing else near it.

    To float32, as what is added to such a number is lost there. A number of 1 or less is none: a
    saturated probability is an answer.
    """
    left = size
    while True:
        top = left.max()
        here = left.float() == top.float()
        if top <= 1 or not torch.equal(a[here].float(), b[here].float()):
            return left
        rest = left.masked_fill(here, 0.0)
        apart = _FAR if int(here.sum()) > 1 else _APART
        if not 0 < rest.max() * apart < top:
            return left
        left = rest


def _typical(size: Tensor) -> Tensor:
    """The smaller of the typical sizes of the columns that a value is in, along dim 1 and the last.

    Typical is the median of what is not zero: no mask that is added and no outlier moves it. Of C
    columns with n values each some are small by chance, the smallest about C^(1/n) times.
    """
    table = size if size.dim() > 1 else size.reshape(-1, 1)
    found = []
    for dim in {1, table.dim() - 1}:
        columns = _thinned(table, dim).flatten(1)
        number, length = columns.shape
        known = torch.where(columns > 0, columns, torch.nan)
        # Of an even number of values torch takes the lower one of the two in the middle.
        median = -(-known).nanmedian(1).values.nan_to_num(0.0)
        median = (median * number ** (1 / length)).clamp(max=size.max())
        found.append(median.reshape([-1 if d == dim else 1 for d in range(table.dim())]))
    smaller = found[0] if len(found) == 1 else torch.minimum(*found)
    return smaller.expand_as(table).reshape_as(size)


def _thinned(table: Tensor, dim: int) -> Tensor:
    """Columns along a dim first, of some thousand values each: enough for a median."""
    columns = table.movedim(dim, 0)
    for other in range(1, columns.dim()):
        step = max(1, columns[0].numel() // _VALUES)
        columns = columns[(slice(None),) * other + (slice(None, None, step),)]
    return columns
