"""MACs of the ATen operations that contract: one rule an operation, from the shapes it was given.

One multiply-add is one MAC. Bias additions, element-wise work, pooling, normalization and lookups
are 0; a causal mask brings no discount; padding is multiplied like any other input.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Contraction(NamedTuple):
    """MACs of one operation, and the operands that may be a weight."""

    macs: int
    operands: tuple[Tensor, ...] = ()


Rule = Callable[[Sequence[Any], Any], list[Contraction]]
"""From an operation's positional arguments and its output to what it contracts."""


def _product(a: Tensor, b: Tensor) -> list[Contraction]:
    # [n, m] x [m, p], [b, n, m] x [b, m, p], [n, m] x [m] and [m] x [m] alike: every entry of the
    # first meets every column of the second.
    columns = b.shape[-1] if b.ndim > 1 else 1
    return [Contraction(a.numel() * columns, (a, b))]


def _matrix_product(args: Sequence[Any], _out: Any) -> list[Contraction]:
    return _product(args[0], args[1])


def _add_matrix_product(args: Sequence[Any], _out: Any) -> list[Contraction]:
    return _product(args[1], args[2])


def _grouped_product(args: Sequence[Any], _out: Any) -> list[Contraction]:
    # Runs of rows, columns or terms, each with a matrix of its own: none meets another's.
    a, b = args[0], args[1]
    if (a.ndim, b.ndim) == (3, 2):  # the columns come in runs
        return [Contraction(b.numel() * a.shape[-2], (a, b))]
    return _product(a, b)


def _convolution(args: Sequence[Any], out: Any) -> list[Contraction]:
    # Every position of the output (of the input, where transposed) meets every weight once:
    # N * H * W * O * (I / groups) * prod(kernel), and O * (I / groups) * prod(kernel) weights.
    images, weight, transposed = args[0], args[1], bool(args[6])
    grid = images if transposed else out
    positions = grid.shape[0] * math.prod(grid.shape[2:])
    return [Contraction(positions * weight.numel(), (weight,))]


def _attention(args: Sequence[Any], _out: Any) -> list[Contraction]:
    # Q K^T and A V, at the heads of the queries: grouped keys are repeated, not saved.
    query, key, value = args[0], args[1], args[2]
    scores = query.shape[:-1].numel() * key.shape[-2]
    return [Contraction(scores * (query.shape[-1] + value.shape[-1]))]


def _recurrent_layer(args: Sequence[Any], _out: Any) -> list[Contraction]:
    # One direction of one layer: both matrices once a step. LSTM: 4 (in + hidden) hidden.
    steps = args[0].shape[:-1].numel()
    return [Contraction(steps * weight.numel(), (weight,)) for weight in (args[1], args[2])]


RULES: dict[str, Rule] = {
    "aten::mm": _matrix_product,
    "aten::_int_mm": _matrix_product,
    "aten::_scaled_mm": _matrix_product,
    "aten::bmm": _matrix_product,
    "aten::_grouped_mm": _grouped_product,
    "aten::mv": _matrix_product,
    "aten::dot": _matrix_product,
    "aten::vdot": _matrix_product,
    "aten::addmm": _add_matrix_product,
    "aten::addmm_": _add_matrix_product,
    "aten::_addmm_activation": _add_matrix_product,
    "aten::baddbmm": _add_matrix_product,
    "aten::baddbmm_": _add_matrix_product,
    "aten::addbmm": _add_matrix_product,
    "aten::addbmm_": _add_matrix_product,
    "aten::addmv": _add_matrix_product,
    "aten::addmv_": _add_matrix_product,
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::convolution_overrideable": _convolution,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "aten::mkldnn_rnn_layer": _recurrent_layer,
}

# Names that speak of a contraction. Anchors and look-behinds keep out `lgamma`, `hamming_window`,
# `convert`, `relu_`, `resolve_conj`, `upsample_linear1d`, `upsample_bilinear2d` and the norms among `linalg_*`.
_CONTRACTS = re.compile(
    r"mm(_|$)|(^|_|add)mv(_|$)|dot(_|$)|matmul|einsum|conv(?!ert)|attention|rnn|lstm|gru|^_fft_|"
    r"linalg_(?!vector_norm|_powsum|check_errors|cross|diagonal)|_[cp]dist|euclidean_dist|^_trilinear|"
    r"(?<!upsample_)(?<!bi)(?<!tri)linear|(?<!re)solve|cholesky|svd|geqrf|ormqr|(^|_)lu_|"
    r"transformer"
)

_HOME = ("aten", "prim", "prims", "profiler")

# Operations of other libraries that pick, interpolate or pool.
_HARMLESS = frozenset(
    {
        "torchvision::nms",
        "torchvision::roi_align",
        "torchvision::roi_pool",
        "torchvision::ps_roi_align",
    }
)


def may_contract(name: str) -> bool:
    """Whether an operation without a rule may hide MACs.

    True for names of contractions in PyTorch itself, and for all operations of other libraries,
    whose inside is hidden.

    >>> may_contract("aten::_fft_r2c"), may_contract("aten::upsample_bilinear2d")
    (True, False)
    """
    namespace, _, operation = name.partition("::")
    if namespace in _HOME:
        return _CONTRACTS.search(operation) is not None
    return name not in _HARMLESS
