"""Weights that several nodes of a file read, turned once for all layers among these.

onnxruntime turns the weights of Gemm nodes when it quantizes them; before 1.32 it does so where they lie,
so that another reader of them, a table of words or a second layer, finds them turned as well.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prunus.extras import require_extra

_TURNED = ".turned"


def turn_shared_(model: Any, folder: Path) -> None:
    """Have Gemm nodes that share their weight with any other node read a turned copy of it.

    Args:
        model: Of ONNX, perhaps without the tensors that lie beside its file. It is changed.
        folder: Of its file.
    """
    onnx = require_extra("onnx", "onnx")
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(_read(graph))
    turned: dict[str, str] = {}
    for node in graph.node:
        turns = [field for field in node.attribute if field.name == "transB" and field.i]
        name = node.input[1] if node.op_type == "Gemm" else ""
        if not turns or name not in stored or readers[name] < 2:
            continue
        if name not in turned:
            values = onnx.numpy_helper.to_array(stored[name], base_dir=str(folder))
            turned[name] = name + _TURNED
            graph.initializer.append(
                onnx.numpy_helper.from_array(np.ascontiguousarray(values.T), turned[name])
            )
        node.input[1] = turned[name]
        turns[0].i = 0
    for name in turned.keys() - set(_read(graph)):  # layers alone have read it
        graph.initializer.remove(stored[name])


def _read(graph: Any) -> Iterator[str]:
    """Names of all that nodes of a graph read, those of graphs within it too, and of what it returns."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for field in node.attribute:
            for inner in (*field.graphs, *([field.g] if field.HasField("g") else [])):
                yield from _read(inner)
