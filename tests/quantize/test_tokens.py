"""Dynamic int8 with a scale for each token: the formula, what it is for, and what it leaves alone."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from torch import Tensor, nn

from prunus.quantize import Deployment, deploy, load_deployed, parity
from prunus.quantize.onnx_tokens import scale_by_token_
from prunus.zoo import load_source
from tests.quantize.networks import BERT, DIGITS, LSTM, batches, texts, written


class Two(nn.Module):
    """Two products of one input, and one of the mean over its tokens."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(8, 6, bias=False), nn.Linear(6, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c((self.a(x) * self.b(x)).mean(1))
        return out


def model_of(folder: Path) -> Any:
    return onnx.load(str(folder / "model.onnx"))


def product(x: np.ndarray, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Rows of the input on 255 levels around zero, columns of the weight as the file holds them."""
    rows = np.abs(x).max(-1, keepdims=True) / 127
    whole = np.rint(x / rows) @ weight.astype(np.float64)
    result: np.ndarray = whole * rows * scale
    return result


def test_the_file_computes_the_formula(tmp_path: Path) -> None:
    network = Two().eval()
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    x[1, 2] *= 50  # an outlier
    chosen = Deployment(weights="int8", activations="token")
    deploy(network, tmp_path / "d", chosen, inputs=x)
    held = {i.name: numpy_helper.to_array(i) for i in model_of(tmp_path / "d").graph.initializer}
    weights = sorted(
        (name for name, value in held.items() if value.dtype == np.int8 and value.ndim == 2),
        key=lambda name: (held[name].shape, name),
    )
    assert [held[name].shape for name in weights] == [(6, 3), (8, 6), (8, 6)]
    scaled = {name: held[name.replace("_quantized", "_scale")] for name in weights}
    real = {name: held[name] * scaled[name] for name in weights}
    c, first, second = weights
    if np.abs(real[first] - network.a.weight.detach().numpy().T).max() > 0.1:
        first, second = second, first
    assert np.abs(real[first] - network.a.weight.detach().numpy().T).max() < 0.05  # 7 bits
    a = product(x.numpy(), held[first], scaled[first]) + network.a.bias.detach().numpy()
    b = product(x.numpy(), held[second], scaled[second])
    expected = product((a * b).mean(1), held[c], scaled[c]) + network.c.bias.detach().numpy()
    found = load_deployed(tmp_path / "d", threads=1)(x).numpy()
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activations", ["token", "tensor"])
def test_a_text_gets_the_same_alone_and_beside_others(activations: str, tmp_path: Path) -> None:
    written(BERT, tmp_path / "d", weights="int8", activations=activations)
    session = load_deployed(tmp_path / "d", threads=1)
    together = texts(6, 9)
    assert isinstance(together, dict)
    alone = torch.cat([session({k: v[i : i + 1] for k, v in together.items()}) for i in range(6)])
    apart = float((session(together) - alone).abs().max())
    assert (apart < 1e-5) == (activations == "token"), apart


def test_an_outlier_costs_the_other_tokens_nothing(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    x = torch.randn(1, 30, 64, generator=torch.Generator().manual_seed(0))
    plain, outlier = x.clone(), x.clone()
    outlier[0, 0] *= 100
    errors: dict[str, list[float]] = {}
    for activations in ("tensor", "token"):
        chosen = Deployment.model_validate({"weights": "int8", "activations": activations})
        deploy(network, tmp_path / activations, chosen, inputs=x)
        session = load_deployed(tmp_path / activations, threads=1)
        with torch.no_grad():
            errors[activations] = [
                float((session(given)[:, 1:] - network(given)[:, 1:]).square().mean().sqrt())
                for given in (plain, outlier)
            ]
    assert errors["token"][1] == pytest.approx(errors["token"][0], rel=1e-4)
    assert errors["tensor"][1] > 10 * errors["token"][1]


@pytest.mark.parametrize("source", [BERT, LSTM, DIGITS], ids=["bert", "bilstm", "digits"])
@pytest.mark.parametrize("rest", ["float32", "float16"])
def test_it_goes_with_every_network_and_with_the_other_choices(
    source: Any, rest: str, tmp_path: Path
) -> None:
    embeddings = "float32" if source is DIGITS else "int8"
    choices: dict[str, Any] = {"weights": "int8", "activations": "token"}
    choices |= {"embeddings": embeddings, "rest": rest}
    written(source, tmp_path / "d", **choices)
    kinds = [node.op_type for node in model_of(tmp_path / "d").graph.node]
    assert "DynamicQuantizeLinear" not in kinds
    assert "MatMulInteger" in kinds
    assert ("DynamicQuantizeLSTM" in kinds) == (source is LSTM)  # one scale for all, as ever
    session = load_deployed(tmp_path / "d", threads=1)
    assert parity(load_source(source), session, batches(source)).relative_difference < 0.2


def test_zeros_stay_zeros(tmp_path: Path) -> None:
    network = nn.Linear(8, 3).eval()
    chosen = Deployment(weights="int8", activations="token")
    deploy(network, tmp_path / "d", chosen, inputs=torch.ones(2, 8))
    found = load_deployed(tmp_path / "d", threads=1)(torch.zeros(2, 8))
    assert torch.equal(found, network.bias.detach().expand(2, 3))


def test_what_other_operations_read_keeps_its_scale() -> None:
    """The zero point goes to an output, too: the tensor cannot be rewritten."""
    make = onnx.helper.make_node
    nodes = [
        make("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        make("MatMulInteger", ["q", "w", "z"], ["y"]),
        make("Cast", ["z"], ["seen"], to=onnx.TensorProto.FLOAT),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [], [])
    model = onnx.helper.make_model(graph)
    assert scale_by_token_(model) == 0
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in nodes]


@pytest.mark.parametrize(
    "choices",
    [
        {"engine": "torch", "weights": "int8"},
        {"engine": "openvino", "weights": "int8"},
        {"weights": "float32"},
        {"weights": "int8", "calibration": "static"},
    ],
    ids=str,
)
def test_where_it_is_not_there_it_is_refused(choices: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="activations=token is for engine=onnxruntime with"):
        Deployment.model_validate({**choices, "activations": "token"})
