"""What versions of packages and kinds of processors would spoil, were it not seen to."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnxruntime import quantization
from torch import nn

from prunus.quantize import Deployment, deploy, load_deployed, parity
from tests.quantize.networks import DIGITS, written


@pytest.mark.parametrize("calibration", ["dynamic", "static"])
def test_a_quantizer_that_turns_weights_finds_no_shapes_of_before(
    calibration: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """onnxruntime before 1.32 turns the weight of a Gemm, and refuses the shape noted for it."""
    name, noted = f"quantize_{calibration}", []
    real = getattr(quantization, name)

    def seen(path: str, *arguments: Any, **options: Any) -> None:
        graph = onnx.load(path).graph
        weights = {weight.name for weight in graph.initializer}
        assert any(node.op_type == "Gemm" and weights & set(node.input) for node in graph.node)
        noted.append(weights & {value.name for value in graph.value_info})
        real(path, *arguments, **options)

    monkeypatch.setattr(quantization, name, seen)
    written(DIGITS, tmp_path / "out", engine="onnxruntime", weights="int8", calibration=calibration)
    assert noted == [set()]


def test_openvinos_products_do_not_saturate_on_any_cpu(tmp_path: Path) -> None:
    """Without VNNI two products are added in 16 bits: 8-bit weights would saturate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Linear(64, 128)
        network = nn.Sequential(first, nn.ReLU(), nn.Linear(128, 10)).eval()
        batch = torch.rand(256, 64) + 0.5  # of one sign: ranges are used to their ends
    first.weight.data.abs_()
    deployment = Deployment(engine="openvino", weights="int8")
    deploy(network, tmp_path / "out", deployment, inputs=batch[:4], calibration=[batch])
    near = parity(network, load_deployed(tmp_path / "out"), [batch])
    assert near.relative_difference < 0.05
