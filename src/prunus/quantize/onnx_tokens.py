"""Dynamic int8 in an ONNX graph with a scale for each token instead of one for the whole batch.

One scale for all inputs of a layer is set by its largest value: a few outliers, such as those of a
text's first and last piece, leave the other tokens a few of the 255 levels, and what a text gets
depends on the texts beside it. A scale for each row of the input mends both.

References:
    Yao et al., "ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale
    Transformers", NeurIPS 2022, section 4.1, token-wise quantization
    (https://arxiv.org/abs/2206.01861).
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from prunus.extras import require_extra

_LEVELS = 127  # on either side of zero, which lies at 128: products with 7-bit weights fit 16 bits
_ZERO = 128
_AXIS, _STEP, _LEAST, _OFFSET, _POINT = (
    f"by_token.{name}" for name in ("axis", "step", "least", "offset", "zero_point")
)
_AXES_ARE_INPUTS = 18  # of ReduceMax, from this version of the operations


def scale_by_token_(model: Any, products: Collection[str] | None = None) -> int:
    """Rewrite the quantized matrix products of a model in place.

    ``scale = max|row| / 127``, ``q = round(row / scale) + 128``; the product of integers is the same
    operation with the zero point 128, its result is multiplied by the row's scale and then by the
    column's. Other users of a dynamically quantized tensor keep the scale of the whole.

    Args:
        model: ``ModelProto`` as ``quantize_dynamic`` writes it.
        products: Names of the matrix products that are meant, with all that read the same input;
            None: all.

    Returns:
        Layer inputs that were rewritten.
    """
    onnx = require_extra("onnx", "onnx")
    graph = model.graph
    users: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    constants = {constant.name for constant in graph.initializer}
    chosen = [
        node
        for node in graph.node
        if node.op_type == "DynamicQuantizeLinear"
        and _feeds_products_alone(node, users, constants)
        and (products is None or any(user.name in products for user in users[node.output[0]]))
    ]
    if not chosen:
        return 0
    version = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    scales = {node.output[1] for node in chosen}
    points = {node.output[2] for node in chosen}
    both: dict[str, tuple[str, str]] = {}  # of rows and of columns, by the name of their product
    nodes: list[Any] = []
    for node in graph.node:
        if any(node is one for one in chosen):
            nodes += _quantize_rows(onnx, node, by_input=version >= _AXES_ARE_INPUTS)
            continue
        for place, name in enumerate(node.input):
            if name in points:
                node.input[place] = _POINT
        if node.op_type == "Mul" and (mine := scales.intersection(node.input)):
            row = mine.pop()
            both[node.output[0]] = row, next(name for name in node.input if name != row)
        else:
            nodes += _scaled(onnx, node, both)
    del graph.node[:]
    graph.node.extend(nodes)
    values = {
        _AXIS: np.array([-1], np.int64),
        _STEP: np.float32(1 / _LEVELS),
        _LEAST: np.float32(np.finfo(np.float32).tiny * _LEVELS),  # of a row of zeros
        _OFFSET: np.float32(_ZERO),
        _POINT: np.uint8(_ZERO),
    }
    if version < _AXES_ARE_INPUTS:
        del values[_AXIS]
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()
    )
    return len(chosen)


def _feeds_products_alone(node: Any, users: dict[str, list[Any]], constants: set[str]) -> bool:
    """Whether a quantized tensor is the left side of matrix products alone.

    Its scale then meets that of the columns, a constant, and the product of both the result.
    """
    quantized, scale, point = node.output
    products = users[quantized]
    return (
        bool(products)
        and all(p.op_type == "MatMulInteger" and p.input[0] == quantized for p in products)
        and all(user in products for user in users[point])
        and all(
            user.op_type == "Mul"
            and not constants.isdisjoint(user.input)
            and all(last.op_type == "Mul" for last in users[user.output[0]])
            for user in users[scale]
        )
    )


def _quantize_rows(onnx: Any, node: Any, *, by_input: bool) -> Iterator[Any]:
    """In the place of ``DynamicQuantizeLinear``: the same outputs but the zero point, by row."""
    values, (quantized, scale, _) = node.input[0], node.output
    make = onnx.helper.make_node
    sizes, most, safe, shares, whole, moved = (
        f"{quantized}.by_token.{part}" for part in ("abs", "max", "safe", "share", "round", "move")
    )
    yield make("Abs", [values], [sizes])
    if by_input:
        yield make("ReduceMax", [sizes, _AXIS], [most], keepdims=1)
    else:
        yield make("ReduceMax", [sizes], [most], axes=[-1], keepdims=1)
    yield make("Max", [most, _LEAST], [safe])
    yield make("Mul", [safe, _STEP], [scale])
    yield make("Div", [values, scale], [shares])
    yield make("Round", [shares], [whole])
    yield make("Add", [whole, _OFFSET], [moved])
    yield make("Cast", [moved], [quantized], to=onnx.TensorProto.UINT8)


def _scaled(onnx: Any, node: Any, both: dict[str, tuple[str, str]]) -> Iterator[Any]:
    """A product's scaling by rows and then by columns; every other node as it is.

    One after the other: the engine fuses a product of the two scales, and takes the rows' for one
    number then.
    """
    joint = next((name for name in node.input if name in both), None)
    if node.op_type != "Mul" or joint is None:
        yield node
        return
    row, column = both[joint]
    product = next(name for name in node.input if name != joint)
    half = f"{node.output[0]}.by_token"
    yield onnx.helper.make_node("Mul", [product, row], [half])
    yield onnx.helper.make_node("Mul", [half, column], [node.output[0]])
