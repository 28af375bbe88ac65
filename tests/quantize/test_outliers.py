"""Static int8 where a fixed range suits some layers badly: which ones, and what they get instead."""

import math
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from prunus.quantize import Deployed, Deployment, deploy, load_deployed, outliers
from prunus.quantize.outliers import Range, outlier_layers

STATIC = Deployment(weights="int8", calibration="static", smoothing="off")

NEAREST = {"rounding": "nearest", "smoothing": "off"}


class Spiky(nn.Module):
    """The second layer reads a few values of 80 among many of about 1."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second, self.last = nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(16, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.25, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        spikes = 80.0 * (x[..., :1] > 2.5).float()  # of a token in a hundred
        spiked = torch.cat((hidden[..., :1] + spikes, hidden[..., 1:]), dim=-1)
        out: Tensor = self.last(torch.relu(self.second(spiked)).mean(1))
        return out


def tokens(samples: int, seed: int) -> Tensor:
    return torch.randn(samples, 12, 16, generator=torch.Generator().manual_seed(seed))


def deployed(network: nn.Module, folder: Path) -> Deployed:
    calibration = [tokens(32, seed) for seed in range(4)]
    return deploy(network, folder, STATIC, inputs=tokens(2, 9), calibration=calibration)


def test_the_noise_of_rounding_by_hand() -> None:
    found = Range()
    found.see(torch.tensor([[-1.0, 0.0], [3.0, 1.0]]))
    found.see(torch.tensor([2.0]))
    assert math.isclose(found.noise, (4 / 255) ** 2 / 12 / (15 / 5), rel_tol=1e-6)
    above = Range()
    above.see(torch.tensor([2.0, 4.0]))  # zero is in every range
    assert math.isclose(above.noise, (4 / 255) ** 2 / 12 / 10, rel_tol=1e-6)
    assert Range().noise == 0


def test_rounding_adds_the_noise_that_is_foretold() -> None:
    values = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 7 - 3
    found = Range()
    found.see(values)
    step = (found.most - found.least) / 255
    error = (torch.round(values / step) * step - values).square().mean()
    assert float(error / values.square().mean()) == pytest.approx(found.noise, rel=0.02)


def test_layers_that_read_outliers_are_found() -> None:
    network = Spiky()
    batches = [tokens(32, seed) for seed in range(4)]
    assert outlier_layers(network, STATIC, batches) == ["second"]
    excluded = STATIC.model_copy(update={"exclude": ("second",)})
    assert outlier_layers(network, excluded, batches) == []
    assert not network.second._forward_pre_hooks


def test_they_get_a_scale_for_each_token_and_the_rest_its_fixed_range(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network, inputs = Spiky().eval(), tokens(64, 77)
    record = deployed(network, tmp_path / "mixed")
    assert any("1 of 3 linear layers read outliers" in note for note in record.notes)
    kinds = [node.op_type for node in onnx.load(tmp_path / "mixed" / "model.onnx").graph.node]
    assert kinds.count("MatMulInteger") == 1
    assert kinds.count("QuantizeLinear") >= 2  # of the inputs of the two others
    monkeypatch.setattr(outliers, "MOST_NOISE", math.inf)
    plain = deployed(network, tmp_path / "fixed")
    assert not any("outliers" in note for note in plain.notes)
    with torch.inference_mode():
        wanted = network(inputs)
    error = {
        name: float((load_deployed(tmp_path / name)(inputs) - wanted).square().mean())
        for name in ("mixed", "fixed")
    }
    assert error["mixed"] < error["fixed"] / 4
    assert abs(record.size_bytes - plain.size_bytes) < 5_000


def test_in_dynamic_int8_they_alone_get_a_scale_for_each_token(tmp_path: Path) -> None:
    network, inputs = Spiky().eval(), tokens(64, 77)
    calibration = [tokens(32, seed) for seed in range(4)]
    error, products = {}, {}
    with torch.inference_mode():
        wanted = network(inputs)
    for activations in ("tensor", "auto", "token"):
        choices = {"weights": "int8", "activations": activations, **NEAREST}
        asked = Deployment.model_validate(choices)
        folder = tmp_path / activations
        record = deploy(network, folder, asked, inputs=tokens(2, 9), calibration=calibration)
        told = (
            "1 of 3 linear layers read outliers, for which the scale of the largest is too coarse"
        )
        assert any(told in note for note in record.notes) == (activations == "auto")
        error[activations] = float((load_deployed(folder)(inputs) - wanted).square().mean())
        graph = onnx.load(folder / "model.onnx").graph
        products[activations] = [
            sum(node.op_type == kind for node in graph.node)
            for kind in ("MatMulInteger", "DynamicQuantizeLinear")
        ]
    assert products == {"tensor": [3, 3], "auto": [3, 2], "token": [3, 0]}
    assert error["auto"] < error["tensor"] / 4
    assert error["auto"] < 1.5 * error["token"]


def test_without_samples_dynamic_int8_keeps_one_scale(tmp_path: Path) -> None:
    record = deploy(Spiky(), tmp_path / "d", Deployment(weights="int8"), inputs=tokens(2, 9))
    kinds = [node.op_type for node in onnx.load(tmp_path / "d" / "model.onnx").graph.node]
    assert kinds.count("DynamicQuantizeLinear") == 3
    assert not any("outliers" in note for note in record.notes)


@pytest.mark.parametrize(
    ("choices", "reads"),
    [
        ({"weights": "int8"}, True),
        ({"weights": "int8", "activations": "token"}, True),
        ({"weights": "int8", "activations": "token", "rounding": "nearest"}, False),
        ({"weights": "int8", "activations": "tensor"}, True),
        ({"weights": "int8", "activations": "tensor", "rounding": "nearest"}, True),
        ({"weights": "int8", "activations": "tensor", "smoothing": "off"}, True),
        ({"weights": "int8", "activations": "tensor", **NEAREST}, False),
        ({"weights": "int8", **NEAREST}, True),
        ({"weights": "int8", "engine": "torch"}, True),
        ({"weights": "int8", "engine": "torch", **NEAREST}, False),
        ({"weights": "int8", "engine": "openvino"}, True),
        ({"weights": "int8", "engine": "openvino", **NEAREST}, True),
        ({"embeddings": "int8"}, False),
        ({"embeddings": "int8", "engine": "torch"}, False),
    ],
)
def test_what_samples_are_measured_for(choices: dict[str, str], reads: bool) -> None:
    assert Deployment.model_validate(choices).reads_samples == reads


def test_a_sample_gets_the_same_alone_and_beside_others(tmp_path: Path) -> None:
    deployed(Spiky().eval(), tmp_path / "out")
    session, inputs = load_deployed(tmp_path / "out"), tokens(16, 5)
    alone = torch.cat([session(inputs[k : k + 1]) for k in range(16)])
    torch.testing.assert_close(session(inputs), alone, rtol=1e-5, atol=1e-6)


class Attending(nn.Module):
    """Attention of one head: three products with weights, two without."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.query, self.last = nn.Linear(16, 64), nn.Linear(16, 3)
        self.turned = nn.Parameter(torch.randn(64, 16, generator=generator) / 4)

    def forward(self, x: Tensor) -> Tensor:
        asked = self.query(x) @ self.turned  # a weight of no layer
        shares = (asked @ x.sin().transpose(1, 2)).softmax(-1)
        out: Tensor = self.last((shares @ x.cos()).mean(1))
        return out


def test_sums_of_static_int8_stay_in_float_and_so_do_products_without_weights(
    tmp_path: Path,
) -> None:
    # What reads a sum next computes in float32: a range of 8 bits before it would only lose.
    deployed(Attending().eval(), tmp_path / "net")
    nodes = onnx.load(str(tmp_path / "net" / "model.onnx")).graph.node
    made = {name: node for node in nodes for name in node.output}
    products = [node for node in nodes if node.op_type in ("MatMul", "Gemm")]
    inputs = [[made[name].op_type for name in n.input[:2] if name in made] for n in products]
    assert sum(kinds == ["DequantizeLinear"] * 2 for kinds in inputs) == 3
    assert sum("DequantizeLinear" not in kinds for kinds in inputs) == 2
    # A range stands before each of the three, and behind none but where it is the next one's.
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) == 3
