"""Outliers of a column moved into the weights that read it (SmoothQuant)."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from prunus.data import Inputs
from prunus.meter import as_predictor
from prunus.quantize import Deployment, deploy, load_deployed, run_fresh, smoothing
from prunus.quantize.by_row import LEVELS
from prunus.quantize.fitted import fitted
from prunus.quantize.gptq import nearest
from prunus.quantize.outliers import outlier_layers
from prunus.quantize.smoothed import FACTORS, SmoothedLinear
from prunus.quantize.smoothing import smoothed
from prunus.zoo import load_source
from tests.quantize.networks import BERT, ROWS, Rows, rows, texts

INT8 = Deployment(weights="int8", engine="torch")
LARGE = ROWS.model_copy(update={"arguments": {"large": 64.0}})
GIVEN = [rows(16, seed) for seed in range(4)]


def smoothed_layers(network: nn.Module) -> dict[str, SmoothedLinear]:
    return {p: m for p, m in network.named_modules() if isinstance(m, SmoothedLinear)}


def test_a_layer_that_reads_two_large_columns_says_the_same_with_small_ones() -> None:
    network = Rows(large=64.0).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    own, count = smoothed(network, INT8, GIVEN, LEVELS)
    found = smoothed_layers(own)
    assert count == 1
    assert list(found) == ["second"]
    factors = found["second"].input_factors
    assert torch.equal(factors.log2(), factors.log2().round())  # powers of 2: products are the same
    others = torch.cat((factors[:5], factors[7:]))
    assert float(factors[5:7].max()) < float(others.median()) / 4
    weight = network.second.weight.detach()
    assert torch.equal(found["second"].weight * factors, weight)
    with torch.inference_mode():
        torch.testing.assert_close(own(GIVEN[0]), network.eval()(GIVEN[0]), rtol=1e-5, atol=1e-6)
    network.train()
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert type(network.second) is nn.Linear
    assert not any(m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("large", [8.0, 64.0, 512.0])
def test_the_strength_that_leaves_the_least_error_is_taken(
    large: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the samples, with weights at three times the levels, as that is where strengths compare."""
    network = Rows(large=large).eval()
    hidden = functional.gelu(network.first(torch.cat(GIVEN))) * network.get_buffer("sizes")
    wanted = functional.linear(hidden, network.second.weight)

    def error() -> float:
        own, _ = smoothed(network, INT8, GIVEN, LEVELS)
        layer = smoothed_layers(own)["second"]
        read = hidden * layer.input_factors
        step = (read.max() - read.min()) / 255
        weight = nearest(layer.weight, 3 * LEVELS)
        made = functional.linear((read / step).round() * step, weight)
        return float((made - wanted).square().sum())

    with torch.no_grad():
        best = error()
        alone = []
        for strength in smoothing.STRENGTHS:
            monkeypatch.setattr(smoothing, "STRENGTHS", (strength,))
            monkeypatch.setattr(smoothing, "WORTH", torch.inf)
            alone.append(error())
    assert best <= 1.05 * min(alone)
    assert best < 0.85 * max(alone)


def test_what_went_into_weights_is_no_outlier_any_more() -> None:
    network = Rows(large=64.0)
    assert outlier_layers(network, INT8, GIVEN) == ["second"]
    own, _ = smoothed(network, INT8, GIVEN, LEVELS)
    assert outlier_layers(own, INT8, GIVEN) == []


def test_factors_stay_within_what_halves_hold() -> None:
    own, _ = smoothed(Rows(large=3e4), INT8, GIVEN, LEVELS)
    factors = smoothed_layers(own)["second"].input_factors
    assert float(factors.min()) == 2.0**-12
    assert torch.equal(factors.half().float(), factors)


def test_layers_without_outliers_keep_their_inputs() -> None:
    network = Rows()
    assert smoothed(network, INT8, GIVEN, LEVELS) == (network, 0)


def test_excluded_layers_are_left() -> None:
    network, asked = Rows(large=64.0), INT8.model_copy(update={"exclude": ("sec*",)})
    assert smoothed(network, asked, GIVEN, LEVELS) == (network, 0)


@pytest.mark.parametrize(
    "choices",
    [
        {"engine": "torch"},
        {"engine": "torch", "rest": "float16"},
        {"engine": "torch", "rounding": "nearest"},
        {"engine": "onnxruntime", "activations": "tensor"},
        {"engine": "onnxruntime", "activations": "tensor", "rest": "float16"},
        {"engine": "onnxruntime", "calibration": "static"},
    ],
)
def test_what_is_deployed_is_nearer_here_and_in_a_new_process(
    choices: dict[str, Any], tmp_path: Path
) -> None:
    network, fresh = load_source(LARGE).eval(), rows(64, 9)
    with torch.inference_mode():
        wanted = network(fresh)
    found, sizes = {}, {}
    for kind in ("off", "auto"):
        folder = tmp_path / kind
        asked = Deployment(weights="int8", smoothing=kind, **choices)
        record = deploy(
            network, folder, asked, inputs=GIVEN[0], calibration=GIVEN, source=LARGE, plans=()
        )
        told = "outliers in the inputs of 1 of 3 linear layers went into weights"
        assert any(told in note for note in record.notes) == (kind == "auto")
        session = load_deployed(folder, threads=1)
        found[kind] = float((session(fresh) - wanted).square().mean())
        sizes[kind] = record.size_bytes
    again = run_fresh(folder, [fresh], threads=1)  # the last of them, where factors are layers
    torch.testing.assert_close(again.logits, session(fresh))
    assert found["auto"] < found["off"] / 4
    assert 0 < sizes["auto"] - sizes["off"] < 96 * 4 + 600  # the factors, and their names


def outlying_bert() -> nn.Module:
    """Two columns behind every norm are large, and small in the weights that read them."""
    network = load_source(BERT).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight[3:5] = 40.0
            elif isinstance(module, nn.Linear):
                module.weight[:, 3:5] /= 40.0
    return network


def test_layers_that_read_one_tensor_share_factors_and_their_multiplication(tmp_path: Path) -> None:
    network, given = outlying_bert(), [texts(6, 9), texts(4, 17)]
    own, count = smoothed(network, INT8, given, LEVELS)
    found = smoothed_layers(own)
    attention = "bert.encoder.layer.0.attention.self"
    queries, keys, values = (found[f"{attention}.{name}"] for name in ("query", "key", "value"))
    assert queries.input_factors is keys.input_factors is values.input_factors
    for batch in given:
        torch.testing.assert_close(
            as_predictor(own)(batch), as_predictor(network)(batch), rtol=1e-4, atol=1e-5
        )
    asked = Deployment(weights="int8", activations="tensor")
    deploy(network, tmp_path / "d", asked, inputs=given[0], calibration=given, dynamic_length=True)
    kinds = [node.op_type for node in onnx.load(tmp_path / "d" / "model.onnx").graph.node]
    linear = sum(isinstance(m, nn.Linear) for m in network.modules())
    # Queries, keys and values of both layers are rounded together.
    assert kinds.count("DynamicQuantizeLinear") == linear - 2 * 2
    assert count >= 8


@pytest.mark.parametrize("rest", ["float32", "float16"])
def test_every_layer_has_its_factors_in_a_file_of_pytorch(rest: str, tmp_path: Path) -> None:
    """Halves hold powers of 2. Those that layers share are there for each of them."""
    network, given = outlying_bert(), [texts(6, 9), texts(4, 17)]
    asked = INT8.model_copy(update={"rest": rest})
    deploy(network, tmp_path / "d", asked, inputs=given[0], calibration=given, source=BERT)
    held = load_file(tmp_path / "d" / "int8.safetensors")
    layers = smoothed_layers(smoothed(network, INT8, given, LEVELS)[0])
    wanted = {f"{path}.{FACTORS}": layer.input_factors.half() for path, layer in layers.items()}
    assert wanted.keys() == {name for name in held if name.endswith(FACTORS)}
    assert all(torch.equal(held[name], factors) for name, factors in wanted.items())


class Twice(nn.Module):
    """One layer that is called twice, or whose weights are read past it as well."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(16, 16)
        self.register_buffer("sizes", torch.ones(16))
        self.get_buffer("sizes")[2] = 60.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x * self.get_buffer("sizes"))
        if self.kind == "again":
            out = out + self.layer(x)
        if self.kind == "past":
            out = out + functional.linear(x, self.layer.weight)
        return out


@pytest.mark.parametrize(("kind", "count"), [("once", 1), ("again", 0), ("past", 0)])
def test_weights_that_something_else_reads_stay(kind: str, count: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, batch = Twice(kind).eval(), torch.randn(40, 16)
    own, found = smoothed(network, INT8, [batch], LEVELS)
    assert found == count
    assert (own is network) == (count == 0)


def test_all_batches_and_all_readers_count() -> None:
    """The column is large in the last batch alone, and only the second layer reads it."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.one(x) + self.two(x)
            return out

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, plain = Two().eval(), torch.randn(64, 16)
    with torch.no_grad():
        network.one.weight[:, 3] = 0
    large = plain.clone()
    large[:, 3] *= 80
    assert smoothed(network, INT8, [plain, plain], LEVELS)[1] == 0
    assert smoothed(network, INT8, [plain, large], LEVELS)[1] == 2


def test_what_a_user_hung_on_a_layer_stays() -> None:
    network = nn.Sequential(nn.Linear(16, 16)).eval()
    network[0].__dict__["name"] = "mine"
    network[0].register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    network.__dict__["listed"] = [network[0]]
    batch = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    batch[:, 3] *= 80
    own, count = smoothed(network, INT8, [batch], LEVELS)
    layer = own.get_submodule("0")
    assert count == 1
    assert own.__dict__["listed"][0] is layer
    assert getattr(layer, "name", None) == "mine"
    torch.testing.assert_close(as_predictor(own)(batch), as_predictor(network)(batch))


def test_a_narrow_head_is_not_worth_its_factors() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = torch.randn(64, 16) * torch.tensor([60.0] + [1.0] * 15)
        narrow, wide = nn.Linear(16, 7), nn.Linear(16, 8)
    assert smoothed(narrow, INT8, [batch], LEVELS) == (narrow, 0)
    training = nn.Sequential(nn.Dropout(0.5), wide).train()
    assert smoothed(training, INT8, [batch], LEVELS)[1] == 1


@pytest.mark.parametrize(
    ("choices", "done"),
    [
        ({"engine": "torch"}, True),
        ({"engine": "torch", "smoothing": "off"}, False),
        ({"engine": "onnxruntime"}, True),
        ({"engine": "onnxruntime", "activations": "token"}, False),
        ({"engine": "openvino"}, False),
    ],
)
def test_where_it_is_done(choices: dict[str, str], done: bool) -> None:
    asked = Deployment.model_validate({"weights": "int8", "rounding": "nearest", **choices})
    network = Rows(large=64.0)
    own, notes = fitted(network, asked, GIVEN)
    engine = choices["engine"]
    told = (f"{engine}: outliers in the inputs of 1 of 3 linear layers went into weights",)
    assert notes == (told if done else ())
    assert (own is network) != done


def test_inputs_that_are_not_finite_are_left() -> None:
    batch: Inputs = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    assert isinstance(batch, Tensor)
    batch[3, 4] = torch.inf
    network = nn.Sequential(nn.Linear(64, 16))
    assert smoothed(network, INT8, [batch], LEVELS) == (network, 0)


def test_the_same_samples_give_the_same_file(tmp_path: Path) -> None:
    asked, source = Deployment(weights="int8", engine="torch"), LARGE
    files = []
    for name in "ab":
        deploy(
            load_source(source),
            tmp_path / name,
            asked,
            inputs=GIVEN[0],
            calibration=GIVEN,
            source=source,
        )
        files.append((tmp_path / name / "int8.safetensors").read_bytes())
    assert files[0] == files[1]
