"""``rest=float16``: what int8 leaves is stored in half the bytes, and computes in float32."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from prunus.quantize import Deployment, deploy, load_deployed
from prunus.quantize.by_row import by_row
from prunus.quantize.job import fits_float16
from prunus.quantize.torch_engine import INT8_FILE
from prunus.records import Source
from prunus.zoo import load_source
from tests.quantize.networks import BERT, DIGITS, LSTM, batches, written

KINDS = {"bert": BERT, "lstm": LSTM, "digits": DIGITS}
ENGINES = ("torch", "onnxruntime", "openvino")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_float32_but_for_eleven_bits(
    engine: str, kind: str, tmp_path: Path
) -> None:
    source = KINDS[kind]
    choices: dict[str, Any] = {"engine": engine, "weights": "int8"}
    whole = written(source, tmp_path / "whole", **choices)
    half = written(source, tmp_path / "half", **choices, rest="float16")
    # The images' network has no large float constant in OpenVINO's file: its convolutions are int8.
    assert half.size_bytes < whole.size_bytes or (engine, kind) == ("openvino", "digits")
    first, second = load_deployed(tmp_path / "whole"), load_deployed(tmp_path / "half")
    for batch in batches(source):
        wanted, found = first(batch), second(batch)
        assert found.dtype == torch.float32
        # Each of a dozen layers rounds by 2^-11; near a border, int8 of what follows may turn over.
        assert (found - wanted).abs().max() <= 0.03 * wanted.abs().max()


def test_pytorch_stores_two_bytes_for_each_number_that_is_not_int8(tmp_path: Path) -> None:
    written(BERT, tmp_path / "half", engine="torch", weights="int8", rest="float16")
    stored = load_file(tmp_path / "half" / INT8_FILE)
    scales = {name for name in stored if name.endswith(".scale")}
    for name, value in stored.items():
        levels = f"{name.removesuffix('.weight')}.scale" in scales and name.endswith(".weight")
        assert value.dtype == (torch.int8 if levels else torch.float16), name
    network = load_source(BERT)
    table = "bert.embeddings.word_embeddings.weight"
    own = network.get_parameter(table).detach()
    error = (stored[table].float() - own).abs()
    assert (error <= own.abs() * 2.0**-11 + 2.0**-25).all()


def test_int8_rows_with_scales_of_float16_are_wrong_by_a_little_more_than_half_a_level() -> None:
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    weight[7] = 0.0
    levels, scale = by_row(weight, halves=True)
    assert scale.dtype == torch.float16
    error = (levels.float() * scale.float().unsqueeze(1) - weight).abs()
    assert (error <= scale.float().unsqueeze(1) * (0.5 + 127 * 2.0**-11)).all()
    assert not error[7].any()
    tiny = weight.clone()
    tiny[3] *= 1e-4  # its scale would be known to a few bits
    assert by_row(tiny, halves=True)[1].dtype == torch.float32


def test_onnx_casts_large_constants_and_leaves_scales(tmp_path: Path) -> None:
    written(BERT, tmp_path / "half", engine="onnxruntime", weights="int8", rest="float16")
    model = onnx.load(str(tmp_path / "half" / "model.onnx"))
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    casts = [n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in kinds]
    assert {kinds[n.input[0]] for n in casts} >= {onnx.TensorProto.FLOAT16}
    large = [
        t
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and torch.tensor(list(t.dims)).prod() >= 64
    ]
    scales = {i for n in model.graph.node if "Linear" in n.op_type for i in n.input}
    assert all(t.name in scales for t in large)


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        (torch.tensor([1.0, -65504.0]), True),
        (torch.tensor([1.0, 65520.0]), False),
        (torch.tensor([float("inf")]), False),
        (torch.tensor([float("nan")]), False),
        (torch.tensor([float("nan"), 0.0]), False),
        (torch.tensor([1e-5, 0.0]), False),
        (torch.tensor([1e-9, 1.0]), False),  # what is divided by it would be infinite
        (torch.tensor([[[1e-9]], [[1.0]]]), False),  # a vector, however it lies
        (torch.tensor([0.0, 1.0]), True),
        (torch.tensor([[1e-9, 1.0], [1.0, 1.0]]), True),  # most matrices have such entries
        (torch.tensor(1e-9), False),
        (torch.zeros(3), True),
        (torch.empty(0), False),
        (torch.tensor([3]), False),
        (torch.tensor([1.0], dtype=torch.float64), False),
    ],
)
def test_numbers_that_float16_cannot_hold_are_told(values: Tensor, fits: bool) -> None:
    assert fits_float16(values) is fits


def test_it_is_refused_where_nothing_is_int8() -> None:
    with pytest.raises(ValueError, match="rest=float16 is for what int8 leaves"):
        Deployment(engine="torch", rest="float16")


def test_scales_that_float16_would_round_to_nothing_stay(tmp_path: Path) -> None:
    """Rows over six decades, undone by what follows: a row whose scale is lost is lost."""
    factors = torch.logspace(0, -6, 128)
    first = nn.Linear(64, 128, bias=False)
    with torch.no_grad():
        first.weight *= factors[:, None]
    network = nn.Sequential(first, Times(1 / factors), nn.ReLU(), nn.Linear(128, 64)).eval()
    inputs = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for name in ("float32", "float16"):
        deployment = Deployment.model_validate({"weights": "int8", "rest": name})
        deploy(network, tmp_path / name, deployment, inputs=inputs)
        found.append(load_deployed(tmp_path / name)(inputs))
    assert (found[0] - found[1]).abs().max() <= 0.01 * found[0].abs().max()


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_deviations_that_float16_would_round_to_nothing_stay(engine: str, tmp_path: Path) -> None:
    """One of 1e-9 among others of 1: inputs divided by zero would be infinite, or NaN."""
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.out = nn.Linear(80, 64), nn.Linear(64, 3)\n"
        "        self.register_buffer('deviations', torch.tensor([1e-9] + [1.0] * 79))\n\n"
        "    def forward(self, x):\n"
        "        return self.out(torch.tanh(self.a(x / self.deviations)))\n"
    )
    source = Source(model=f"{tmp_path / 'nets.py'}:Net")
    network = load_source(source).eval()
    inputs = torch.randn(16, 80, generator=torch.Generator().manual_seed(0))
    inputs[:, 0] *= 1e-9
    deployment = Deployment.model_validate({"engine": engine, "weights": "int8", "rest": "float16"})
    deploy(network, tmp_path / "d", deployment, inputs=inputs, source=source)
    with torch.no_grad():
        wanted = network(inputs)
    found = load_deployed(tmp_path / "d")(inputs)
    assert (found - wanted).abs().max() <= 0.05 * wanted.abs().max()


class Times(nn.Module):
    """Multiplies by a buffer."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("factors")
