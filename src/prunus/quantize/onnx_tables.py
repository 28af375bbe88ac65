"""Tables of words as int8 with a scale for each row, in an ONNX graph.

ONNX Runtime's own quantizer gives a table one scale: a single large number leaves all other rows a few
levels. Here a look-up reads a row of bytes and its scale.
"""

from collections.abc import Collection
from typing import Any

import torch

from prunus.extras import require_extra
from prunus.quantize.by_row import by_row

SCALE = ".row_scale"
"""Ends the names of scales, which are in the number format that suits them already."""


def quantize_tables_(model: Any, names: Collection[str], *, halves: bool) -> dict[str, bool]:
    """Rewrite look-ups of tables in place.

    Args:
        model: ``ModelProto``.
        names: Of the tables' constants.
        halves: Store scales as float16 where that holds them.

    Returns:
        Names of the rewritten tables, each with whether something else reads it as well, so that its
        floats stay beside the bytes.
    """
    onnx = require_extra("onnx", "onnx")
    graph, make = model.graph, onnx.helper.make_node
    tables = {one.name: one for one in graph.initializer if one.name in names}
    nodes: list[Any] = []
    written: dict[str, Any] = {}
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if table is None or axis != 0:
            nodes.append(node)
            continue
        name, ids, out = table.name, node.input[1], node.output[0]
        if name not in written:
            values = torch.from_numpy(onnx.numpy_helper.to_array(table).copy())
            levels, scale = by_row(values, halves=halves)
            written[name] = scale.dtype
            graph.initializer.extend(
                onnx.numpy_helper.from_array(value.numpy(), name + ending)
                for value, ending in ((levels, ".int8"), (scale.unsqueeze(1), SCALE))
            )
        float32 = onnx.TensorProto.FLOAT
        nodes += [
            make("Gather", [f"{name}.int8", ids], [f"{out}.levels"]),
            make("Cast", [f"{out}.levels"], [f"{out}.float"], to=float32),
            make("Gather", [name + SCALE, ids], [f"{out}.scale"]),
        ]
        scales = f"{out}.scale"
        if written[name] == torch.float16:
            nodes.append(make("Cast", [scales], [f"{scales}.float"], to=float32))
            scales = f"{scales}.float"
        nodes.append(make("Mul", [f"{out}.float", scales], [out]))
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    for name in written:
        if name not in read:
            graph.initializer.remove(tables[name])
    return {name: name in read for name in written}
