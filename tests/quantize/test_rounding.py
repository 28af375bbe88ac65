"""Weights of int8 layers rounded by what the layers read (GPTQ)."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from pydantic import ValidationError
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.quantize import Deployment, deploy, load_deployed, onnx_runtime, rounding
from prunus.quantize.by_row import LEVELS, by_row
from prunus.quantize.fitted import fitted
from prunus.quantize.gptq import gptq, nearest
from prunus.quantize.options import Engine
from prunus.quantize.rounding import rounded
from prunus.records import multiplies_bytes
from prunus.zoo import load_source
from tests.quantize.networks import DIGITS, ROWS, Rows, Tied, batches, correlated, rows

INT8 = Deployment(weights="int8", engine="torch")


def error(weight: Tensor, other: Tensor, inputs: Tensor) -> float:
    return float(((weight - other) @ inputs.T).square().sum())


def made(weight: Tensor, moments: Tensor, levels: int) -> Tensor:
    found = gptq(weight, moments, levels)
    assert found is not None
    return found


def test_rounding_of_a_row_by_hand() -> None:
    """Steps of 1: 0.6 and 0.6 on inputs that are the same become 1 and 0, not 1 and 1.

    The order is that of the inputs' power: the third column, then the second. Damping adds 0.01 of the
    mean power to each, so that the error of 0.4 goes over but for its hundredth part.
    """
    inputs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 2.001], [0.0, -1.0, -1.0]])
    weight = torch.tensor([[-2.0, 0.6, 0.6], [0.0, 0.0, 0.0]])
    found = made(weight, inputs.T @ inputs, levels=2)
    torch.testing.assert_close(found, torch.tensor([[-2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(nearest(weight, 2)[0], torch.tensor([-2.0, 1.0, 1.0]))


def test_damping_is_a_hundredth_of_the_mean_power() -> None:
    """An error of 0.4 in the first column moves the second by 0.4 * 2.4 / (2 + d), d = 0.01 * 7 / 3.

    That is 0.4745; without damping 0.48, with ten times as much 0.4299. The rows tell them apart.
    """
    moments = torch.tensor([[4.0, 2.4, 0.0], [2.4, 2.0, 0.0], [0.0, 0.0, 1.0]])
    weight = torch.tensor([[1.4, 0.0265, 2.0], [1.4, 0.0225, 2.0]])
    found = made(weight, moments, levels=2)  # steps of 1
    assert found.tolist() == [[1.0, 1.0, 2.0], [1.0, 0.0, 2.0]]


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    weight = torch.randn(20, 300, generator=torch.Generator().manual_seed(0))
    power = torch.rand(300, generator=torch.Generator().manual_seed(1)) + 0.1
    torch.testing.assert_close(made(weight, power.diag(), 127), nearest(weight, 127))


@pytest.mark.parametrize("block", [1, 7])
def test_blocks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(12, 90, generator=torch.Generator().manual_seed(0))
    inputs = correlated(300, 90, 0)
    whole = made(weight, inputs.T @ inputs, 15)
    monkeypatch.setattr("prunus.quantize.gptq._BLOCK", block)
    torch.testing.assert_close(made(weight, inputs.T @ inputs, 15), whole)


@given(seed=st.integers(0, 10_000), levels=st.sampled_from([7, 64, 127]), dead=st.booleans())
def test_the_error_falls_on_the_same_grid(seed: int, levels: int, dead: bool) -> None:
    weight = torch.randn(24, 160, generator=torch.Generator().manual_seed(seed))
    inputs = correlated(500, 160, seed)
    if dead:
        inputs[:, 5:9] = 0
    found, plain = made(weight, inputs.T @ inputs, levels), nearest(weight, levels)
    assert error(found, weight, inputs) < 0.5 * error(plain, weight, inputs)
    fresh = correlated(500, 160, seed + 1)
    fresh[:, 5:9] *= float(not dead)
    assert error(found, weight, fresh) < 0.7 * error(plain, weight, fresh)
    torch.testing.assert_close(found.abs().amax(1), weight.abs().amax(1))
    torch.testing.assert_close(nearest(found, levels), found)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_inputs_that_tell_nothing_give_nothing(value: float) -> None:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert gptq(weight, torch.full((6, 6), value), 127) is None


@pytest.mark.parametrize("value", [0.0, torch.nan, 1.0])
def test_layers_that_gain_nothing_are_left(value: float) -> None:
    """Inputs of zeros, of no number, and of all directions alike, as many as there are columns."""
    network = nn.Sequential(nn.Linear(32, 24))
    inputs = torch.randn(45, 32, generator=torch.Generator().manual_seed(0)) * value
    assert rounded(network, INT8, [inputs], LEVELS)[1] == 0


def test_rows_of_zeros_stay_zeros_where_small_numbers_are_flushed() -> None:
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    torch.set_flush_denormal(True)
    try:
        found = made(weight, torch.eye(6), 127)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(found[1], torch.zeros(6))
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("passes", [1, 3])
def test_layers_that_read_enough_are_rounded(passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if passes == 3:
        monkeypatch.setattr(rounding, "_PASS_BYTES", 4 * 64 * 64)
    network = Rows().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    own, count = rounded(network, INT8, [rows(16, 0), rows(15, 1)], LEVELS)
    assert count == 2  # the last one reads 31 rows of 64 columns
    assert network.training
    assert not network.first._forward_pre_hooks
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(own.state_dict()[name], tensor) != (
            name in ("first.weight", "second.weight")
        )
    read = rows(15, 1).flatten(0, 1)
    made = own.get_submodule("first").get_parameter("weight").detach()
    plain = nearest(network.first.weight.detach(), LEVELS)
    wanted = network.first.weight.detach()
    assert error(made, wanted, read) < 0.5 * error(plain, wanted, read)


class Padded(nn.Module):
    """A layer over the pieces of texts, the mean of what is no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 8)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        seen = attention_mask.unsqueeze(-1)
        out: Tensor = (self.layer(hidden) * seen).sum(1) / seen.sum(1)
        return out


def test_padding_has_no_part_in_it() -> None:
    hidden, network = correlated(40, 16, 0).reshape(4, 10, 16), Padded()
    mask = torch.ones(4, 10, dtype=torch.long)
    mask[:, 6:] = 0
    given = [{"hidden": hidden, "attention_mask": mask}]
    other = hidden.clone()
    other[:, 6:] = 50 * torch.randn(4, 4, 16, generator=torch.Generator().manual_seed(1))
    found, same = (
        rounded(network, INT8, batch, LEVELS)[0].get_parameter("layer.weight")
        for batch in (given, [{"hidden": other, "attention_mask": mask}])
    )
    assert torch.equal(found, same)
    few = [{"hidden": hidden[:, :6][:2], "attention_mask": mask[:2, :6]}]
    assert rounded(network, INT8, few, LEVELS)[1] == 0  # 12 pieces of 16 columns
    most = [{"hidden": hidden[:2], "attention_mask": mask[:2]}]
    assert rounded(network, INT8, most, LEVELS)[1] == 0  # 12 of 20


def test_weights_that_a_table_has_too_are_left() -> None:
    network = Tied()
    batch = {"input_ids": torch.randint(40, (300, 5), generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        network.words.weight.copy_(correlated(40, 16, 0))
    assert rounded(network, INT8, [batch], LEVELS)[1] == 0
    network.out.weight = nn.Parameter(network.out.weight.detach().clone())
    assert rounded(network, INT8, [batch], LEVELS)[1] == 1


def test_a_layer_that_nothing_calls_is_left() -> None:
    network = nn.Sequential(nn.Linear(16, 8))
    network[0].register_module("idle", nn.Linear(16, 8))
    assert rounded(network, INT8, [correlated(300, 16, 0)], LEVELS)[1] == 1


@pytest.mark.parametrize(
    "choices",
    [
        {"engine": "torch"},
        {"engine": "onnxruntime", "activations": "tensor"},
        {"engine": "onnxruntime", "activations": "token"},
        {"engine": "onnxruntime", "calibration": "static"},
    ],
)
def test_an_engine_finds_the_very_grid(choices: dict[str, Any], tmp_path: Path) -> None:
    """Rounded by the engine once more, weights stay what they are: its levels are ours."""
    network, given = Rows().eval(), [rows(16, 0), rows(16, 1)]
    asked = Deployment(weights="int8", smoothing="off", **choices)
    levels = LEVELS if choices["engine"] == "torch" else onnx_runtime.LEVELS
    wanted, _ = rounded(network, asked, given, levels)
    weight = wanted.get_submodule("second").get_parameter("weight").detach()
    if choices["engine"] == "torch":
        whole, scale = by_row(weight)
        torch.testing.assert_close(whole * scale[:, None], weight)
        return
    deploy(network, tmp_path / "d", asked, inputs=given[0], calibration=given)
    held = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy())
        for t in onnx.load(tmp_path / "d" / "model.onnx").graph.initializer
    }
    name = next(n for n, t in held.items() if t.dtype == torch.int8 and t.shape == (96, 64))
    scale = held[name.removesuffix("_quantized") + "_scale"]
    torch.testing.assert_close((held[name] * scale).T, weight)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_a_deployed_network_is_nearer(engine: Engine, tmp_path: Path) -> None:
    network, fresh = Rows().eval(), rows(64, 7)
    with torch.inference_mode():
        wanted = network(fresh)
    found, told = {}, {}
    for kind in ("nearest", "gptq", "auto"):
        choices = {"engine": engine, "activations": "auto", "smoothing": "off", "rounding": kind}
        asked = Deployment.model_validate({"weights": "int8", **choices})
        given = [rows(32, seed) for seed in range(4)]
        record = deploy(
            network, tmp_path / kind, asked, inputs=given[0], calibration=given, source=ROWS
        )
        found[kind] = float((load_deployed(tmp_path / kind)(fresh) - wanted).square().mean())
        told[kind] = (
            f"{engine}: weights of 3 of 3 linear layers were rounded by what they read"
            in (record.notes)
        )
    assert told == {"nearest": False, "gptq": True, "auto": True}
    # Without VNNI PyTorch has 7 bits for inputs, whose error hides that of weights.
    most = 0.8 if engine == "onnxruntime" or multiplies_bytes() else 1.1
    assert found["gptq"] == found["auto"] < most * found["nearest"]


def test_nothing_is_rounded_without_samples_or_where_it_is_not_asked() -> None:
    network = Rows()
    assert fitted(network, INT8, []) == (network, ())
    for choices in (
        {"engine": "openvino"},
        {"weights": "float32"},
        {"rounding": "nearest", "smoothing": "off"},
    ):
        asked = Deployment.model_validate({"weights": "int8", "engine": "torch", **choices})
        assert fitted(network, asked, [rows(16, 0)]) == (network, ())


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"weights": "int8", "engine": "openvino"}, "not int8 with openvino; leave it out"),
        ({"weights": "float32", "engine": "torch"}, "not float32 with torch; leave it out"),
        ({"embeddings": "int8"}, "not float32 with onnxruntime; leave it out"),
    ],
)
def test_where_there_is_no_such_rounding(choices: dict[str, str], told: str) -> None:
    with pytest.raises(ValidationError, match=f"rounding=gptq is for weights=int8 .*{told}"):
        Deployment.model_validate({"rounding": "gptq", **choices})


def test_it_cannot_be_done_without_samples_or_on_other_inputs(tmp_path: Path) -> None:
    network, asked = load_source(DIGITS), Deployment(weights="int8", rounding="gptq")
    inputs = batches(DIGITS)[0]
    with pytest.raises(InputError, match="int8 of engine=onnxruntime with rounding=gptq is"):
        deploy(network, tmp_path / "d", asked, inputs=inputs)
    said = "the network cannot run on the calibration batches: .*; give batches as it takes them"
    with pytest.raises(InputError, match=said):
        deploy(network, tmp_path / "d", asked, inputs=inputs, calibration=[torch.ones(3, 5)])
    assert not (tmp_path / "d").exists()
