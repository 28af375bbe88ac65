"""Label rules of operations that compute nothing across positions, and of copies."""

from collections.abc import Iterator
from typing import Any

import torch

from prunus.graph.inputs import flat_tensors
from prunus.graph.labels import Factor, Labels
from prunus.graph.walk import Walk, rule

_POINTWISE = [
    "_prelu_kernel",
    "abs",
    "abs_",
    "acos",
    "acosh",
    "add",
    "add_",
    "addcdiv",
    "addcmul",
    "addcmul_",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bernoulli_",
    "bitwise_and",
    "bitwise_and_",
    "bitwise_not",
    "bitwise_or",
    "ceil",
    "celu",
    "celu_",
    "clamp",
    "clamp_",
    "clamp_max",
    "clamp_max_",
    "clamp_min",
    "clamp_min_",
    "copy",
    "copysign",
    "cos",
    "cos_",
    "cosh",
    "div",
    "div_",
    "dropout",
    "elu",
    "elu_",
    "eq",
    "erf",
    "erf_",
    "erfc",
    "erfinv",
    "exp",
    "exp2",
    "exp_",
    "expm1",
    "fill_",
    "floor",
    "floor_divide",
    "fmax",
    "fmin",
    "fmod",
    "frac",
    "ge",
    "gelu",
    "gelu_",
    "gt",
    "hardshrink",
    "hardsigmoid",
    "hardsigmoid_",
    "hardswish",
    "hardswish_",
    "hardtanh",
    "hardtanh_",
    "hypot",
    "isfinite",
    "isinf",
    "isnan",
    "le",
    "leaky_relu",
    "leaky_relu_",
    "lerp",
    "lgamma",
    "log",
    "log10",
    "log1p",
    "log2",
    "log_",
    "log_sigmoid",
    "log_sigmoid_forward",
    "logaddexp",
    "logaddexp2",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "logit",
    "lt",
    "masked_fill",
    "masked_fill_",
    "maximum",
    "minimum",
    "mish",
    "mish_",
    "mul",
    "mul_",
    "nan_to_num",
    "native_dropout",
    "ne",
    "neg",
    "neg_",
    "pow",
    "pow_",
    "prelu",
    "reciprocal",
    "reciprocal_",
    "relu",
    "relu6",
    "relu_",
    "remainder",
    "round",
    "round_",
    "rrelu_with_noise",
    "rsqrt",
    "rsqrt_",
    "rsub",
    "sgn",
    "sigmoid",
    "sigmoid_",
    "sign",
    "silu",
    "silu_",
    "sin",
    "sin_",
    "sinh",
    "softplus",
    "softshrink",
    "special_entr",
    "sqrt",
    "sqrt_",
    "square",
    "square_",
    "sub",
    "sub_",
    "tan",
    "tanh",
    "tanh_",
    "threshold",
    "threshold_",
    "true_divide",
    "trunc",
    "where",
    "xlogy",
    "zero_",
]
# Operations on one tensor that leave zero at zero: a weight behind them still connects nothing.
_ZERO_STAYS = {
    "abs",
    "asin",
    "asinh",
    "atan",
    "ceil",
    "div",
    "elu",
    "erf",
    "expm1",
    "floor",
    "gelu",
}
_ZERO_STAYS |= {"leaky_relu", "log1p", "mul", "neg", "relu", "round", "sgn", "sign", "silu", "sin"}
_ZERO_STAYS |= {"sinh", "sqrt", "square", "tan", "tanh", "true_divide", "trunc"}
_IDENTITY = [
    "clone",
    "detach",
    "detach_",
    "alias",
    "contiguous",
    "_to_copy",
    "to",
    "lift_fresh",
    "lift_fresh_copy",
]
_LIKE = ["zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"]


@rule(*_POINTWISE)
def pointwise(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions that meet are coupled (``Algebra.elementwise``)."""
    operands = [_operand(walk, t) for t in flat_tensors((args, kwargs))]
    out = func(*args, **kwargs)
    results = list(flat_tensors(out))
    name = func.overloadpacket.__name__
    if results and any(labels.factors for labels, _ in operands):
        reason = walk.reason(name, "meets a dimension whose size cannot change")
        labels = walk.algebra.elementwise(operands, results[0].shape, reason)
        params = {labels.param for labels, _ in operands if labels.param}
        if len(operands) == 1 and len(params) == 1:
            labels = Labels(labels.factors, params.pop())
            if name.removesuffix("_") not in _ZERO_STAYS:
                for factor in labels.factors:
                    walk.note_mixed(factor.ids)
        for result in results:
            walk.mark(result, labels)
    return out


def _operand(walk: Walk, tensor: torch.Tensor) -> tuple[Labels, tuple[int, ...]]:
    """Labels and shape; a bare dim that is one position spread (``expand_as``) is of size 1.

    Where its size was written down as a number, the cut network does not run, and the probe says so.
    """
    labels = walk.labels(tensor)
    shape = [
        1 if stride == 0 and labels.on(dim) is None else size
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
    ]
    return labels, tuple(shape)


@rule(*_IDENTITY)
def identity(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A copy or cast: still the same parameter."""
    out = func(*args, **kwargs)
    walk.mark(out, walk.labels(args[0]))
    return out


@rule(*_LIKE)
def like(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A constant of the same shape follows the shape of its model."""
    out = func(*args, **kwargs)
    walk.mark(out, Labels(walk.labels(args[0]).factors))
    return out


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
def fresh(_: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A constant that takes only type and device from its model: no labels."""
    return func(*args, **kwargs)


@rule("copy_")
def written(walk: Walk, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Values written into a part of a tensor label the dims that the part spans, where nothing else has.

    Where their size is fixed, the cut network does not run, and the probe says so.
    """
    part, values = args[0], args[1]
    whole = part if part._base is None else part._base
    labels, here, given = walk.labels(whole), walk.labels(part), walk.labels(values)
    for dim, own in _spanned(part, whole):
        factor = given.on(dim + values.dim() - part.dim())
        if factor is not None and len(factor.dims) == 1 and labels.on(own) is None:
            labels = Labels((*labels.factors, Factor((own,), factor.ids)))
            here = Labels((*here.factors, Factor((dim,), factor.ids)))
    walk.mark(whole, labels)
    if part is not whole:
        walk.mark(part, here)
    return pointwise(walk, func, args, kwargs)


def _spanned(part: torch.Tensor, whole: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Dims of a view that go over a whole dim of what it is a view of, each with that dim."""
    for dim, (size, stride) in enumerate(zip(part.shape, part.stride(), strict=True)):
        for own in range(whole.dim()):
            if size > 1 and (size, stride) == (whole.shape[own], whole.stride(own)):
                yield dim, own
