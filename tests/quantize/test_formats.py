"""Every format that is allowed, on every kind of network; what stays in float, and what is shared."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunus.data import Inputs
from prunus.errors import InputError, PlanMismatchError
from prunus.meter import file_size_bytes
from prunus.quantize import Deployment, deploy, load_deployed, parity, run_fresh
from prunus.quantize.options import Engine, Weights
from prunus.records import Source
from prunus.zoo import load_source
from tests.quantize.networks import BERT, DIGITS, LSTM, batches, written

KINDS = {"bert": BERT, "bilstm": LSTM, "digits": DIGITS}


def allowed() -> list[dict[str, str]]:
    """All combinations but those that are refused at the door."""
    found = []
    formats = itertools.product(
        get_args(Engine), get_args(Weights), ("float32", "int8"), ("dynamic", "static")
    )
    for engine, weights, embeddings, calibration in formats:
        choices = {
            "engine": engine,
            "weights": weights,
            "embeddings": embeddings,
            "calibration": calibration,
        }
        try:
            Deployment.model_validate(choices)
        except ValidationError:
            continue
        found.append(choices)
    return found


def is_worth_it(kind: str, choices: dict[str, str]) -> bool:
    """Images have no embeddings; OpenVINO's int8 is static however it is asked for."""
    if kind == "digits":
        return choices["embeddings"] == "float32"
    return (choices["engine"], choices["calibration"]) != ("openvino", "static")


def bound(choices: dict[str, str]) -> float:
    """Of the relative difference of logits, by the coarsest number format.

    float32 differs by rounding. bfloat16 keeps 8 bits, float16 (and what OpenVINO computes in where
    a format is not float32) 11. int8 weights are wrong by 1/254 of the largest of their row, inputs
    by 1/255 of their range: about a percent for each layer, and there are a dozen.
    """
    if choices["weights"] == "int8":
        return 0.2
    if choices["weights"] != "float32" or choices["embeddings"] == "int8":
        return 0.05
    return 1e-4


def test_there_are_as_many_formats_as_the_table_says() -> None:
    counts = {e: sum(c["engine"] == e for c in allowed()) for e in get_args(Engine)}
    # torch: 4 weights, int8 tables beside 2. Static doubles int8 weights elsewhere.
    assert counts == {"torch": 6, "onnxruntime": 2 + 4, "openvino": 3 + 4}


@pytest.mark.parametrize(
    ("kind", "choices"),
    [(kind, choices) for kind in KINDS for choices in allowed() if is_worth_it(kind, choices)],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
def test_every_format_is_near_the_network_and_quiet(
    choices: dict[str, Any], kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = KINDS[kind]
    capfd.readouterr()
    record = written(source, tmp_path / "deployed", **choices)
    session = load_deployed(tmp_path / "deployed", threads=1)
    found = parity(load_source(source), session, batches(source))
    assert found.relative_difference <= bound(choices)
    assert capfd.readouterr() == ("", "")
    assert session.device == torch.device("cpu")
    assert set(record.model_files) <= set(record.files)
    sizes = [(tmp_path / "deployed" / name).stat().st_size for name in record.model_files]
    assert record.size_bytes == sum(sizes)
    if choices["engine"] == "torch" and not record.deployment.is_float32:  # others hold a graph
        assert kind == "digits" or record.size_bytes < file_size_bytes(load_source(source))
    assert {f.name for f in (tmp_path / "deployed").iterdir()} == {*record.files, "deployed.json"}


def int8_weights(folder: Path) -> int:
    """Numbers of one byte in an ONNX file, in tensors with at least two dimensions."""
    model = onnx.load(str(folder / "model.onnx"))
    bytes_each = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return sum(
        int(torch.tensor(list(t.dims)).prod())
        for t in model.graph.initializer
        if t.data_type in bytes_each and len(t.dims) >= 2 and "zero_point" not in t.name
    )


def linear_weights(network: nn.Module, *without: str) -> int:
    return sum(
        m.weight.numel()
        for path, m in network.named_modules()
        if type(m) is nn.Linear and not any(word in path for word in without)
    )


@pytest.mark.parametrize("calibration", ["dynamic", "static"])
def test_onnx_holds_a_byte_for_each_weight_but_those_excluded(
    calibration: str, tmp_path: Path
) -> None:
    network = load_source(BERT)
    choices: dict[str, Any] = {
        "engine": "onnxruntime",
        "weights": "int8",
        "calibration": calibration,
    }
    written(BERT, tmp_path / "all", **choices)
    assert int8_weights(tmp_path / "all") == linear_weights(network)
    written(BERT, tmp_path / "less", **choices, exclude=("*.intermediate.*", "classifier"))
    assert int8_weights(tmp_path / "less") == linear_weights(network, "intermediate", "classifier")
    written(BERT, tmp_path / "words", **choices, embeddings="int8")
    words = network.get_parameter("bert.embeddings.word_embeddings.weight").numel()
    assert int8_weights(tmp_path / "words") == linear_weights(network) + words


def test_a_recurrent_layer_is_excluded_by_its_path(tmp_path: Path) -> None:
    lstm = 4 * 8 * (12 + 8)  # four gates of inputs and state, one direction
    for name, exclude, directions in (("a", (), 2), ("b", ("layers.0.back",), 1)):
        written(LSTM, tmp_path / name, engine="onnxruntime", weights="int8", exclude=exclude)
        assert int8_weights(tmp_path / name) == directions * lstm + 32 * 2


@pytest.mark.parametrize(
    ("source", "choices", "note"),
    [
        (LSTM, {"engine": "torch"}, "torch: LSTM stay in float32"),
        (LSTM, {"engine": "openvino"}, "openvino: recurrent layers stay in float32"),
        (LSTM, {"engine": "onnxruntime", "calibration": "static"}, "recurrent layers stay"),
        (DIGITS, {"engine": "torch"}, "torch: Conv2d stay in float32"),
        (DIGITS, {"engine": "onnxruntime"}, "convolutions stay in float32 with dynamic ranges"),
        (DIGITS, {"engine": "onnxruntime", "calibration": "static"}, None),
        (BERT, {"engine": "torch"}, None),
        (BERT, {"engine": "torch", "exclude": ("clasifier",)}, "'clasifier' matches no layer"),
        (BERT, {"engine": "torch", "exclude": ("classifier", "bert.*")}, None),
    ],
)
def test_layers_that_stay_in_float_are_noted(
    source: Source, choices: dict[str, Any], note: str | None, tmp_path: Path
) -> None:
    notes = written(source, tmp_path / "d", weights="int8", **choices).notes
    told = [said for said in notes if "stay in float32" in said or "matches no layer" in said]
    assert any(note in said for said in notes) if note else told == []


@pytest.mark.parametrize("calibration", ["dynamic", "static"])
def test_transposed_convolutions_are_noted_as_what_they_stay(
    calibration: str, tmp_path: Path
) -> None:
    network = nn.Sequential(nn.ConvTranspose2d(1, 8, 2), nn.Flatten(), nn.Linear(8 * 25, 4)).eval()
    given = torch.rand(3, 1, 4, 4)
    deployment = Deployment.model_validate({"weights": "int8", "calibration": calibration})
    found = deploy(network, tmp_path / "d", deployment, inputs=given, calibration=[given])
    assert found.notes == ("onnxruntime: transposed convolutions stay in float32",)


@pytest.mark.parametrize(
    ("name", "engine", "note"),
    [
        ("gru", "onnxruntime", "onnxruntime: GRU stay in float32"),
        ("gru", "torch", "torch: GRU stay in float32"),
        ("attention", "torch", "torch: MultiheadAttention stay in float32"),
        ("turned", "torch", "torch: Turned stay in float32"),
    ],
)
def test_layers_of_the_users_own_that_stay_in_float_are_noted(
    name: str, engine: Engine, note: str, own: Callable[[str], Source], tmp_path: Path
) -> None:
    source = own(name)
    deployment = Deployment(engine=engine, weights="int8")
    found = deploy(
        load_source(source),
        tmp_path / "d",
        deployment,
        inputs=torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)),
        source=source,
    )
    assert [said for said in found.notes if said.startswith(note)]


def test_a_module_that_is_excluded_keeps_all_its_layers_in_float() -> None:
    deployment = Deployment(weights="int8", exclude=("head", "layers.?.back"))
    # A layer that was factorized is a module that holds two.
    for path in ("head", "head.0", "head.1", "layers.0.back.l0"):
        assert deployment.excludes(path)
    for path in ("header", "body.head", "layers.0", "layers.10.back"):
        assert not deployment.excludes(path)


@pytest.mark.parametrize(
    ("source", "exclude", "weights"),
    [
        (BERT, ("*.intermediate.*",), 2 * 32 * 128),
        (DIGITS, ("conv2",), None),
    ],
)
def test_openvino_keeps_excluded_layers_in_float(
    source: Source, exclude: tuple[str, ...], weights: int | None, tmp_path: Path
) -> None:
    if weights is None:
        weights = load_source(source).get_parameter("conv2.weight").numel()

    def data(name: str, **choices: Any) -> int:
        written(source, tmp_path / name, engine="openvino", weights="int8", **choices)
        return (tmp_path / name / "model.bin").stat().st_size

    # float32 has three bytes more for each weight; int8 has scales, and those of its inputs
    gain = data("less", exclude=exclude) - data("all")
    assert 3 * weights * 0.8 <= gain <= 3 * weights


def test_openvino_compresses_tables_of_words_alone(tmp_path: Path) -> None:
    plain = written(BERT, tmp_path / "plain", engine="openvino")
    small = written(BERT, tmp_path / "small", engine="openvino", embeddings="int8")
    sizes = [(tmp_path / n / "model.bin").stat().st_size for n in ("plain", "small")]
    words = 900 * 32
    # Three bytes less for each number, a scale of two or four bytes more for each row; were the
    # positions (24 rows) and types (2) among them, 26 * 96 bytes would be gone besides.
    assert 3 * words - 4 * 900 <= sizes[0] - sizes[1] <= 3 * words
    assert plain.size_bytes > small.size_bytes


FACTORY = """
import torch
from torch import nn
from tests.quantize.networks import Tied

def tied():
    return Tied()

def apart():
    network = Tied()
    network.out.weight = nn.Parameter(network.out.weight.detach().clone())
    return network

class Read(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        more = (x, x) if isinstance(self.layer, nn.MultiheadAttention) else ()
        hidden = self.layer(x, *more)
        return self.out((hidden[0] if isinstance(hidden, tuple) else hidden).mean(1))

class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16, 16))

    def forward(self, x):
        return x @ self.weight

def gru():
    return Read(nn.GRU(16, 16, batch_first=True))

def attention():
    return Read(nn.MultiheadAttention(16, 2, batch_first=True))

def turned():
    return Read(Turned())

class Deaf(Read):
    def forward(self, x, mask):
        return super().forward(x)

def deaf():
    return Deaf(nn.LSTM(16, 16, batch_first=True))

def padded():
    return Padded()

class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.words = nn.Embedding(40, 16, padding_idx=0)
        self.stack, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(16, 2)

    def forward(self, input_ids):
        hidden = self.stack(self.words(input_ids), src_key_padding_mask=input_ids == 0)
        return self.out(hidden[:, 0])

def halved():
    layers = nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 3)
    return nn.Sequential(*layers).bfloat16()

def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(stack, nn.Flatten(), nn.Linear(3 * 16, 2))
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], Source]:
    (tmp_path / "nets.py").write_text(FACTORY)
    return lambda name: Source(model=f"{tmp_path / 'nets.py'}:{name}")


@pytest.mark.parametrize(
    ("choices", "floats", "int8s"),
    [
        ({"weights": "int8"}, {"words.weight", "wpe.weight", "out.bias"}, {"out.weight"}),
        ({"embeddings": "int8"}, {"wpe.weight", "out.weight", "out.bias"}, {"words.weight"}),
        ({"weights": "int8", "embeddings": "int8"}, {"wpe.weight", "out.bias"}, {"words.weight"}),
    ],
)
def test_a_weight_shared_by_table_and_layer_is_stored_in_the_formats_asked_for(
    choices: dict[str, str],
    floats: set[str],
    int8s: set[str],
    own: Callable[[str], Source],
    tmp_path: Path,
) -> None:
    source, folder = own("tied"), tmp_path / "deployed"
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(40, (5, 8), generator=generator)}
    network = load_source(source)
    with torch.no_grad():  # other values than the constructor draws
        network.get_parameter("words.weight").mul_(1.5)
    deployment = Deployment.model_validate({"engine": "torch", **choices})
    deploy(network, folder, deployment, inputs=inputs, source=source)
    stored = load_file(folder / "int8.safetensors")
    assert {n for n, t in stored.items() if t.dtype == torch.int8} == int8s
    assert {n for n in stored if n not in int8s and not n.endswith(".scale")} == floats
    found = parity(network, load_deployed(folder), [inputs])
    assert found.relative_difference < 0.05


@pytest.mark.parametrize("name", ["padded", "halved"])
def test_int8_of_pytorch_runs_where_the_source_is_out_of_the_ordinary(
    name: str, own: Callable[[str], Source], tmp_path: Path
) -> None:
    source = own(name)
    network = load_source(source).eval()
    inputs: Inputs = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    if name == "padded":
        ids = torch.randint(1, 40, (5, 8), generator=torch.Generator().manual_seed(0))
        ids[1, 3:] = 0
        inputs = {"input_ids": ids}
    asked = Deployment(engine="torch", weights="int8")
    deploy(network, tmp_path / "d", asked, inputs=inputs, source=source)
    found = load_deployed(tmp_path / "d")(inputs)
    assert found.shape == (5, 2 if name == "padded" else 3)
    assert bool(found.isfinite().all())


def test_a_source_that_no_longer_builds_the_network_is_named(
    own: Callable[[str], Source], tmp_path: Path
) -> None:
    source, folder = own("apart"), tmp_path / "deployed"
    inputs = {"input_ids": torch.zeros(1, 8, dtype=torch.int64)}
    deployment = Deployment(engine="torch", weights="int8")
    deploy(load_source(source), folder, deployment, inputs=inputs, source=source)
    text = FACTORY.replace("def apart():", "def apart():\n    return nn.Linear(3, 2)\n\ndef old():")
    (tmp_path / "nets.py").write_text(text)
    with pytest.raises(PlanMismatchError, match="builds another network than the one deployed"):
        load_deployed(folder)


def test_the_fused_way_of_a_transformer_layer_does_not_meet_int8(
    own: Callable[[str], Source], tmp_path: Path
) -> None:
    source = own("encoder")
    network = load_source(source)
    inputs = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))
    deployment = Deployment(engine="torch", weights="int8")
    deploy(network, tmp_path / "d", deployment, inputs=inputs, source=source)
    found = parity(network, load_deployed(tmp_path / "d"), [inputs])
    assert 0 < found.relative_difference < 0.05


@pytest.mark.parametrize(
    "choices",
    [{"engine": "onnxruntime", "calibration": "static"}, {"engine": "openvino"}],
)
def test_inputs_that_a_network_never_reads_do_not_stop_the_calibration(
    choices: dict[str, Any], own: Callable[[str], Source], tmp_path: Path
) -> None:
    network = load_source(own("deaf"))
    inputs = {name: torch.randn(4, 5, 16) for name in ("x", "mask")}
    deployment = Deployment(weights="int8", **choices)
    deploy(network, tmp_path / "d", deployment, inputs=inputs, calibration=[inputs])
    assert parity(network, load_deployed(tmp_path / "d"), [inputs]).relative_difference < 0.5


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_missing_calibration_is_found_before_the_export(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnx_runtime", "open_vino"):  # a call of None fails
        monkeypatch.setattr(f"prunus.quantize.{module}.export", None)
    choices = {"engine": engine, "weights": "int8", "calibration": "static"}
    deployment = Deployment.model_validate(choices)
    network, inputs = load_source(DIGITS), batches(DIGITS)[0]
    with pytest.raises(InputError, match=rf"calibration is missing: int8 of engine={engine}"):
        deploy(network, tmp_path / "d", deployment, inputs=inputs)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file; name a new folder"):
        deploy(network, tmp_path / "file", Deployment(), inputs=inputs)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_each_batch_is_asked_for_once_and_may_come_twice(tmp_path: Path) -> None:
    written(DIGITS, tmp_path / "d", engine="torch", weights="bfloat16")
    asked = 0

    def counted() -> Iterator[Inputs]:
        nonlocal asked
        whole = batches(DIGITS)[0]
        assert isinstance(whole, Tensor)
        for part in (whole[:3], whole[3:], whole[:3]):  # views of one tensor
            asked += 1
            yield part

    found = run_fresh(tmp_path / "d", counted())
    assert asked == 3
    assert found.logits.shape == (11, 10)
    assert torch.equal(found.logits[:3], found.logits[8:])
    with pytest.raises(InputError, match="batches is empty"):
        run_fresh(tmp_path / "d", [])


def test_threads_of_a_session_are_its_own(tmp_path: Path) -> None:
    written(DIGITS, tmp_path / "d", engine="torch")
    before = torch.get_num_threads()
    seen: list[int] = []
    session = load_deployed(tmp_path / "d", threads=before + 1)
    network: nn.Module = session.network  # type: ignore[attr-defined]  # of PyTorch's session
    network.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    session(batches(DIGITS)[0])
    assert seen[-1] == before + 1
    assert torch.get_num_threads() == before


def test_a_deployment_of_a_newer_form_is_refused(tmp_path: Path) -> None:
    written(DIGITS, tmp_path / "a", engine="torch")
    file = tmp_path / "a" / "deployed.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(
        InputError, match=r"deployed\.json is not a valid Deployed: version: .*upgrade"
    ):
        load_deployed(tmp_path / "a")
