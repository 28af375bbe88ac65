"""Layers that share their weight with a table or each other read one turned copy of it."""

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from prunus.artifact import export
from prunus.data import Inputs
from prunus.quantize import Deployment, deploy, load_deployed, parity
from prunus.quantize.onnx_shared import turn_shared_

IDS = torch.randint(16, (6, 5), generator=torch.Generator().manual_seed(0))
INPUTS: Inputs = {"input_ids": IDS}


class Tied(nn.Module):
    """A table whose square weight two layers multiply by, too: turned or not, all shapes fit."""

    def __init__(self, *, table: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(16, 16)
        self.other = nn.Embedding(16, 16)
        self.table = table
        self.one, self.two = nn.Linear(16, 16, bias=False), nn.Linear(16, 16)
        self.one.weight = self.two.weight = self.words.weight
        self.alone = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        found = (self.words if self.table else self.other)(input_ids)
        y = torch.tanh(self.one(found.mean(1)) / 4)
        logits: Tensor = self.alone(self.two(y))
        return logits


def run(file: Path) -> Tensor:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input_ids": IDS.numpy()})[0])


def gemms(model: Any) -> dict[str, int]:
    """Weights of the layers, and whether they are turned when they are read."""
    found = {}
    for node in model.graph.node:
        if node.op_type == "Gemm":
            turns = [field.i for field in node.attribute if field.name == "transB"]
            found[node.input[1]] = sum(turns)
    return found


@pytest.mark.parametrize("table", [False, True], ids=["layers", "table and layers"])
@pytest.mark.parametrize("beside", [False, True], ids=["in the file", "beside the file"])
def test_a_shared_weight_has_one_turned_copy_and_the_network_says_the_same(
    beside: bool, table: bool, tmp_path: Path
) -> None:
    network, file = Tied(table=table).eval(), tmp_path / "model.onnx"
    export(network, file, INPUTS)
    before = gemms(onnx.load(str(file)))
    (shared,) = before.keys() - {"alone.weight"}  # the exporter takes one of its three names
    assert set(before.values()) == {1}
    if beside:
        whole = onnx.load(str(file))
        onnx.save(
            whole, str(file), save_as_external_data=True, location="data", size_threshold=1000
        )
    model = onnx.load(str(file), load_external_data=False)
    turn_shared_(model, tmp_path)
    assert gemms(model) == {f"{shared}.turned": 0, "alone.weight": 1}
    stored = [tensor.name for tensor in model.graph.initializer]
    assert stored.count(f"{shared}.turned") == 1
    assert (shared in stored) == table
    onnx.save(model, str(file))
    torch.testing.assert_close(run(file), network(IDS).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("calibration", ["dynamic", "static"])
def test_int8_of_a_shared_square_weight_says_what_the_network_says(
    calibration: str, tmp_path: Path
) -> None:
    network = Tied().eval()
    asked = Deployment.model_validate(
        {
            "engine": "onnxruntime",
            "weights": "int8",
            "embeddings": "int8",
            "calibration": calibration,
        }
    )
    deploy(network, tmp_path / "out", asked, inputs=INPUTS, calibration=[INPUTS])
    assert parity(network, load_deployed(tmp_path / "out"), [INPUTS]).relative_difference < 0.05


def test_a_weight_that_a_branch_reads_too_stays() -> None:
    """By hand: a layer and the branch of an ``If`` share a weight; the branch names it alone."""
    make, kind = onnx.helper.make_node, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(torch.eye(3).numpy(), "w")
    value = onnx.helper.make_tensor_value_info
    then, other = (
        onnx.helper.make_graph([make(op, [name], [out])], out, [], [value(out, kind, [3, 3])])
        for op, name, out in (("Identity", "w", "a"), ("Neg", "w", "b"))
    )
    nodes = [
        make("Gemm", ["x", "w"], ["y"], name="layer", transB=1),
        make("If", ["flag"], ["z"], then_branch=then, else_branch=other),
    ]
    inputs = [value("x", kind, [1, 3]), value("flag", onnx.TensorProto.BOOL, [])]
    outputs = [value("y", kind, [1, 3]), value("z", kind, [3, 3])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", inputs, outputs, [weight]))
    turn_shared_(model, Path())
    assert [tensor.name for tensor in model.graph.initializer] == ["w", "w.turned"]
    assert gemms(model) == {"w.turned": 0}
