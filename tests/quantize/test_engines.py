"""Networks in engines: near the network, as small as the number formats say, whole or not there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunus.errors import DataError, InputError, TemporaryFolderError
from prunus.graph import cut, plan_of
from prunus.meter import file_size_bytes
from prunus.plan import Factorize, Plan
from prunus.quantize import Deployment, deploy, load_deployed, parity, run_fresh
from prunus.quantize.by_row import by_row
from prunus.quantize.torch_int8 import Int8Embedding, dynamic_linear
from prunus.records import multiplies_bytes
from prunus.zoo import load_source
from tests.quantize.networks import BERT, LSTM, TWINS, batches, rows, written

EXACT, FAR = 1e-4, 0.2


def test_int8_tensors_take_a_byte_each_and_a_scale_for_each_row(tmp_path: Path) -> None:
    network = load_source(BERT)
    dense = file_size_bytes(network)
    linear = [m for m in network.modules() if type(m) is nn.Linear]
    weights = sum(m.weight.numel() for m in linear)
    rows = sum(m.out_features for m in linear)
    table = network.get_parameter("bert.embeddings.word_embeddings.weight")
    one = written(BERT, tmp_path / "one", engine="torch", weights="int8").size_bytes
    two = written(
        BERT, tmp_path / "two", engine="torch", weights="int8", embeddings="int8"
    ).size_bytes
    header = 6000  # of the file, which names more tensors
    assert abs(one - (dense - 3 * weights + 4 * rows)) < header
    assert abs(one - two - (3 * table.numel() - 4 * len(table))) < 500


def factorized(**shared: str) -> tuple[nn.Module, Plan]:
    """Both twins in two factors around a core; what the second shares is named. Random numbers."""
    network = load_source(TWINS)
    edits = [
        Factorize(module="first", form="tucker-linear", ranks=(40, 40)),
        Factorize(module="second", form="tucker-linear", ranks=(40, 40), **shared),
    ]
    plan = plan_of(network, edits)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        n: 0.1 * torch.randn(shape, generator=generator)
        for n, shape in plan.result.tensors.items()
        if n not in plan.source.tensors and n.endswith("weight")
    }
    return cut(network, plan, tensors).eval(), plan


@pytest.mark.parametrize(
    ("engine", "weights"),
    [("torch", "float32"), ("torch", "int8"), ("onnxruntime", "int8"), ("openvino", "int8")],
)
def test_shared_factors_are_stored_once(engine: str, weights: str, tmp_path: Path) -> None:
    """Those that are not shared are other numbers: equal ones OpenVINO writes once anyhow."""
    given, sizes = [rows(16, 0), rows(16, 1)], []
    for shared in ({"first": "first", "last": "first"}, {}):
        network, plan = factorized(**shared)
        folder, asked = tmp_path / str(len(shared)), Deployment(engine=engine, weights=weights)
        record = deploy(
            network,
            folder,
            asked,
            inputs=given[0],
            calibration=given,
            source=TWINS,
            plans=[plan],
        )
        session = load_deployed(folder, threads=1)
        bound = EXACT if asked.is_float32 else FAR
        assert parity(network, session, given).relative_difference < bound
        sizes.append(record.size_bytes)
    once, twice = sizes
    bytes_each = 4 if weights == "float32" else 1
    assert twice - once > 0.8 * bytes_each * 2 * (40 * 64)  # two factors


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**16))
def test_a_row_of_int8_is_wrong_by_half_a_level_at_most(rows: int, width: int, seed: int) -> None:
    table = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    small = Int8Embedding.of(table)
    found = small(torch.arange(rows))
    level = table.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((found - table).abs() <= 0.5001 * level).all())


def test_a_process_of_its_own_gives_the_same_logits(tmp_path: Path) -> None:
    folder = tmp_path / "deployed"
    written(LSTM, folder, engine="onnxruntime", weights="int8", embeddings="int8")
    session = load_deployed(folder, threads=1)
    given = batches(LSTM)
    wanted = torch.cat([session(batch) for batch in given])
    found = run_fresh(folder, iter(given), threads=1)
    assert found.logits.shape == (11, 2)
    assert torch.equal(found.logits, wanted)
    assert found.seconds_load > 0


def test_files_that_were_changed_or_are_missing_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "deployed"
    written(LSTM, folder, engine="torch", weights="int8")
    with pytest.raises(InputError, match=r"holds no deployed\.json"):
        load_deployed(tmp_path)
    file = folder / "int8.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(DataError, match="has changed since it was deployed"):
        load_deployed(folder)
    with pytest.raises(InputError, match="does not run in a process of its own: .*has changed"):
        run_fresh(folder, batches(LSTM))
    file.unlink()
    with pytest.raises(DataError, match="is missing since it was deployed"):
        load_deployed(folder)


def test_a_deployment_that_fails_leaves_nothing_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deployed"
    before = written(LSTM, folder, engine="torch")

    def broken(*_: Any, **__: Any) -> None:
        raise InputError("engine=onnxruntime broke; mend it")

    monkeypatch.setattr("prunus.quantize.onnx_runtime.export", broken)
    with pytest.raises(InputError, match="broke"):
        written(LSTM, folder, engine="onnxruntime")
    assert [entry.name for entry in tmp_path.iterdir()] == ["deployed"]
    assert load_deployed(folder).record == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match=r"holds 'thesis\.txt', .*name a new or empty folder"):
        written(LSTM, tmp_path / "mine", engine="torch")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_an_older_deployment_stays_where_a_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deployed"
    written(LSTM, folder, engine="torch", weights="int8")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name.startswith(".deployed.part-"):
            raise OSError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        written(LSTM, folder, engine="torch", weights="int8")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "deployed"] == []


def test_samples_that_the_temporary_folder_does_not_take_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(LSTM, tmp_path / "deployed", engine="torch")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prunus.quantize.fresh.save_file", full)
    size = sum(tensor.nbytes for batch in batches(LSTM) for tensor in batch.values())
    said = f"does not take {size} bytes of samples .* No space left on device.* set TMPDIR"
    with pytest.raises(TemporaryFolderError, match=said):
        run_fresh(tmp_path / "deployed", iter(batches(LSTM)))


def test_what_a_user_put_beside_a_deployment_is_not_replaced_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "deployed"
    before = written(LSTM, folder, engine="torch")
    (folder / "plots").mkdir()
    (folder / "plots" / "f1.csv").write_text("all of it")
    with pytest.raises(InputError, match="holds 'plots', which is no deployment's"):
        written(LSTM, folder, engine="onnxruntime")
    assert (folder / "plots" / "f1.csv").read_text() == "all of it"
    assert load_deployed(folder).record == before
    (folder / "plots" / "f1.csv").unlink()
    (folder / "plots").rmdir()
    written(LSTM, folder, engine="onnxruntime")
    assert load_deployed(folder).record.deployment.engine == "onnxruntime"


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"engine": "torch", "weights": "int8", "calibration": "static"}, "not there for engine=torch"),
        ({"engine": "onnxruntime", "calibration": "static"}, "calibration=static is for weights=int8"),
        ({"engine": "onnxruntime", "weights": "bfloat16"}, "gains nothing in engine=onnxruntime"),
        ({"engine": "openvino", "weights": "bfloat16"}, "chosen by engine=openvino itself"),
        ({"engine": "torch", "weights": "float16", "embeddings": "int8"}, "embeddings=int8 beside"),
        ({"engine": "tflite"}, "'torch', 'onnxruntime' or 'openvino'"),
    ],
)  # fmt: skip
def test_formats_that_do_not_go_together_are_refused(choices: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Deployment.model_validate(choices)


def test_pytorch_without_a_source_or_without_int8_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="engine=torch needs the source"):
        deploy(
            load_source(LSTM),
            tmp_path / "a",
            Deployment(engine="torch"),
            inputs=batches(LSTM)[0],
        )

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("prunus.quantize.torch_int8.import_module", missing)
    with pytest.raises(InputError, match=r"has no torch\.ao.* use engine=onnxruntime for int8"):
        dynamic_linear(torch.zeros(2, 2, dtype=torch.int8), torch.ones(2), None)


def test_excluded_layers_stay_in_float(tmp_path: Path) -> None:
    whole = written(BERT, tmp_path / "a", engine="torch", weights="int8").size_bytes
    less = written(
        BERT, tmp_path / "b", engine="torch", weights="int8", exclude=("*intermediate*",)
    ).size_bytes
    weights = 2 * 32 * 128  # two layers' way up, three bytes more each
    assert less - whole == pytest.approx(3 * weights - 4 * 2 * 128, abs=800)


def test_parity_by_hand() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    own = torch.tensor([[1.0, 3.0], [4.0, 2.0]])
    other = torch.tensor([[1.0, 2.0], [2.0, 2.5]])
    found = parity(Fixed(), lambda _: other, [own])
    assert found.relative_difference == pytest.approx(2 / 4)
    assert found.agreement == 0.5  # the second sample is in another class
    assert found.samples == 2
    # The same, however all signs are.
    negative = parity(Fixed(), lambda _: -other - 3, [-own - 3])
    assert negative.relative_difference == pytest.approx(2 / 7)
    with pytest.raises(InputError, match="batches is empty"):
        parity(Fixed(), lambda _: other, [])
    nothing = torch.full_like(own, torch.nan)
    assert parity(Fixed(), lambda _: nothing, [own.flip(1)]).agreement == 0  # though argmax says 0
    assert parity(Fixed(), lambda _: nothing, [nothing]).agreement == 0  # neither calls a class


@pytest.mark.skipif(not multiplies_bytes(), reason="needs a CPU with VNNI")
@pytest.mark.parametrize(("bits", "steps"), [(8, 255), (7, 127)])
def test_inputs_of_int8_layers_get_as_many_bits_as_the_processor_can_sum(
    bits: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunus.quantize.torch_int8.multiplies_bytes", lambda: bits == 8)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(64, 256, generator=generator) for _ in range(2))
    levels, scale = by_row(weight)
    found = dynamic_linear(levels, scale, None)(x)
    exact = x @ (levels * scale.unsqueeze(1)).T
    # Rounding to a step adds an error of step^2 / 12 for each input, which a row of the weight sums.
    step = float(x.max() - x.min()) / steps
    foretold = step**2 / 12 * float((levels * scale.unsqueeze(1)).square().sum(1).mean())
    assert float((found - exact).square().mean()) == pytest.approx(foretold, rel=0.15)
