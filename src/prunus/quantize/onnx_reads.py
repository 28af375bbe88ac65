"""An ONNX graph that computes for the token that is read, where no other one counts.

A classifier reads the first token of a text, or of an image's patches. What follows the last attention,
three quarters of a BERT layer's products, works on each token by itself: for all but one it is computed for
nothing. Here the look-up of that token moves ahead of it, and logits in float32 stay what they were.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunus.extras import require_extra

_OF_ONE = ("Cast", "Erf", "Gelu", "Identity", "Relu", "Sigmoid", "Sqrt", "Tanh")
_OF_TWO = ("Add", "Div", "Mul", "Pow", "Sub")
_TOKENS = 1  # axis of samples x tokens x channels


def compute_what_is_read(file: Path) -> int:
    """Rewrite an ONNX file; see `compute_what_is_read_`."""
    onnx = require_extra("onnx", "onnx")
    model = onnx.load(str(file), load_external_data=False)
    moved = compute_what_is_read_(model)
    if moved:
        onnx.save(model, str(file))
    return moved


def compute_what_is_read_(model: Any) -> int:
    """Rewrite a graph in place.

    Args:
        model: ``ModelProto`` with the shapes of its inner values; without them nothing is done.

    Returns:
        How many operations compute for one token now.
    """
    if any(part.HasField("g") for node in model.graph.node for part in node.attribute):
        return 0  # a branch may read what no node's inputs name
    moved = 0
    for name in [node.output[0] for node in model.graph.node if node.op_type == "Gather"]:
        view = _View(model, name)
        region = view.region()
        if region:
            _move_ahead_(model, view, region)
        moved += len(region)
    return moved


class _View:
    """A graph as a look-up of one token sees it, named by its output."""

    def __init__(self, model: Any, name: str) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.look_up = next(node for node in self.nodes if name in node.output)
        self.constants = {one.name: one for one in graph.initializer}
        self.shapes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in [*graph.value_info, *graph.input]
        }
        self._readers: dict[str, set[str]] = {value.name: {""} for value in graph.output}
        for node in self.nodes:
            for read in node.input:
                self._readers.setdefault(read, set()).add(node.output[0])

    @property
    def index(self) -> int | None:
        """Of the token that is read of all samples; None where it is no look-up of that kind."""
        data, index = self.look_up.input
        one = self.constants.get(index)
        if one is None or one.dims or one.external_data or len(self.shapes.get(data, ())) != 3:
            return None
        if _attribute(self.look_up, "axis", 0) != _TOKENS or self._tokens in (0, 1):
            return None
        onnx = require_extra("onnx", "onnx")
        return int(onnx.numpy_helper.to_array(one))

    def region(self) -> dict[str, Any]:
        """By output, in order: operations ahead that work token by token and that nothing else reads."""
        if self.index is None:
            return {}
        found: dict[str, Any] = {}
        # From the last on: all that reads a node is known before it.
        for node in reversed(self.nodes):
            readers = self._readers.get(node.output[0], set())
            if readers and readers <= {self.look_up.output[0], *found} and self._by_token(node):
                found[node.output[0]] = node
        return dict(reversed(found.items()))

    def has_tokens(self, name: str) -> bool:
        """Whether a value is computed for every token of every sample."""
        shape = self.shapes.get(name, ())
        return len(shape) == 3 and shape[_TOKENS] == self._tokens

    @property
    def _tokens(self) -> str | int:
        """Their number, or its name; 0 where neither is known."""
        size: str | int = self.shapes[self.look_up.input[0]][_TOKENS]
        return size

    def _by_token(self, node: Any) -> bool:
        if node.domain or len(node.output) != 1 or not self.has_tokens(node.output[0]):
            return False
        first, *others = node.input
        if node.op_type in _OF_TWO:
            return all(self.has_tokens(name) or self._is_constant(name, 1) for name in node.input)
        if not self.has_tokens(first):
            return False
        if node.op_type == "MatMul":
            return self._is_constant(others[0], 2)
        if node.op_type == "LayerNormalization":
            constant = all(self._is_constant(name, 1) for name in others)
            return constant and _attribute(node, "axis", -1) in (-1, 2)
        return node.op_type in _OF_ONE

    def _is_constant(self, name: str, most: int) -> bool:
        one = self.constants.get(name)
        return one is not None and len(one.dims) <= most


def _move_ahead_(model: Any, view: _View, region: dict[str, Any]) -> None:
    """Look the token up in what comes into the region, which has that one token from then on."""
    onnx = require_extra("onnx", "onnx")
    graph, tag = model.graph, f"{view.look_up.output[0]}.read"
    where, first = np.array([view.index], dtype=np.int64), np.array(0, dtype=np.int64)
    for value, ending in ((where, "index"), (first, "first")):
        graph.initializer.append(onnx.numpy_helper.from_array(value, f"{tag}.{ending}"))
    nodes, looked_up = [], set[str]()
    for node in view.nodes:
        for place, name in enumerate(node.input if node.output[0] in region else ()):
            if name in region or not view.has_tokens(name):
                continue
            one = f"{name}.{tag}"
            if name not in looked_up:
                looked_up.add(name)
                inputs = [name, f"{tag}.index"]
                nodes.append(onnx.helper.make_node("Gather", inputs, [one], one, axis=_TOKENS))
            node.input[place] = one
        nodes.append(node)
    view.look_up.input[1] = f"{tag}.first"
    _replace_(graph.node, nodes)
    _replace_(graph.value_info, [v for v in graph.value_info if v.name not in region])


def _replace_(field: Any, values: Sequence[Any]) -> None:
    del field[:]
    field.extend(values)


def _attribute(node: Any, name: str, default: int) -> int:
    return int(next((a.i for a in node.attribute if a.name == name), default))
