"""Label rules of operations that compute nothing across positions, and of copies."""

from typing import Any

from prunus.graph.inputs import flat_tensors
from prunus.graph.labels import Labels
from prunus.graph.walk import Walk, rule

_POINTWISE = [
    "add",
    "add_",
    "sub",
    "sub_",
    "rsub",
    "mul",
    "mul_",
    "div",
    "div_",
    "true_divide",
    "pow",
    "pow_",
    "maximum",
    "minimum",
    "where",
    "fmod",
    "remainder",
    "floor_divide",
    "lerp",
    "addcmul",
    "addcmul_",
    "addcdiv",
    "atan2",
    "masked_fill",
    "masked_fill_",
    "copy_",
    "copy",
    "fill_",
    "zero_",
    "relu",
    "relu_",
    "relu6",
    "gelu",
    "gelu_",
    "silu",
    "silu_",
    "sigmoid",
    "sigmoid_",
    "tanh",
    "tanh_",
    "mish",
    "hardswish",
    "hardswish_",
    "hardsigmoid",
    "hardsigmoid_",
    "hardtanh",
    "hardtanh_",
    "leaky_relu",
    "leaky_relu_",
    "elu",
    "elu_",
    "celu",
    "softplus",
    "log_sigmoid",
    "log_sigmoid_forward",
    "exp",
    "exp_",
    "expm1",
    "log",
    "log1p",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "neg",
    "abs",
    "sign",
    "erf",
    "sin",
    "cos",
    "floor",
    "ceil",
    "round",
    "clamp",
    "clamp_",
    "clamp_min",
    "clamp_max",
    "square",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "logical_and",
    "logical_or",
    "logical_not",
    "logical_xor",
    "bitwise_and",
    "bitwise_or",
    "bitwise_not",
    "bitwise_and_",
    "isnan",
    "isinf",
    "native_dropout",
    "bernoulli_",
    "threshold",
    "prelu",
    "_prelu_kernel",
    "nan_to_num",
    "dropout",
]
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
    operands = [(walk.labels(t), tuple(t.shape)) for t in flat_tensors((args, kwargs))]
    out = func(*args, **kwargs)
    results = list(flat_tensors(out))
    name = func.overloadpacket.__name__
    if results and any(labels.factors for labels, _ in operands):
        reason = walk.reason(name, "meets a dimension whose size cannot change")
        labels = walk.algebra.elementwise(operands, results[0].shape, reason)
        params = {labels.param for labels, _ in operands if labels.param}
        if len(operands) == 1 and len(params) == 1:
            labels = Labels(labels.factors, params.pop())
        for result in results:
            walk.mark(result, labels)
    return out


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
