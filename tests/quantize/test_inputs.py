"""What deployed networks are given: data types, missing inputs, numbers out of range."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.quantize import Deployment, deploy, load_deployed, parity, read_deployed, run_fresh
from prunus.quantize.session import DEPLOYED_FILE
from prunus.records import Source
from prunus.zoo import load_source
from tests.quantize.networks import DIGITS, LSTM, batches, written


def test_inputs_that_a_session_cannot_take_are_named(tmp_path: Path) -> None:
    written(LSTM, tmp_path / "d", engine="onnxruntime")
    session = load_deployed(tmp_path / "d")
    given = batches(LSTM)[0]
    assert isinstance(given, dict)
    with pytest.raises(InputError, match="inputs lack attention_mask; the session takes input_ids"):
        session({"input_ids": given["input_ids"]})
    wrong = {name: tensor.float() for name, tensor in given.items()}
    with pytest.raises(InputError, match=r"engine=onnxruntime cannot run on these inputs: .*float"):
        session(wrong)
    assert torch.equal(session((given["input_ids"], given["attention_mask"])), session(given))
    for threads, told in ((0, "0 is below 1"), ("2", "'2' is no whole number"), (1.5, "1.5 is no")):
        with pytest.raises(InputError, match=f"^threads={told}.*leave it out"):
            load_deployed(tmp_path / "d", threads=threads)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"^threads={told}.*leave it out"):
            run_fresh(tmp_path / "d", [given], threads=threads)  # type: ignore[arg-type]
    whole: Any = np.int64(2)
    assert load_deployed(tmp_path / "d", threads=whole).record.deployment.engine == "onnxruntime"
    run_fresh(tmp_path / "d", [given], threads=whole)
    with pytest.raises(InputError, match="^threads=True is no whole number"):
        load_deployed(tmp_path / "d", threads=True)
    with pytest.raises(InputError, match=r"^batches\[1\]\['flag'\] is a bool: tensors alone go to"):
        run_fresh(tmp_path / "d", [given, {**given, "flag": True}])  # type: ignore[dict-item]


def test_inputs_that_pytorch_cannot_take_are_named_too(tmp_path: Path) -> None:
    written(LSTM, tmp_path / "d", engine="torch", weights="int8")
    session = load_deployed(tmp_path / "d")
    given = batches(LSTM)[0]
    assert isinstance(given, dict)
    said = "engine=torch cannot run on these inputs: "
    with pytest.raises(InputError, match=said + "TypeError: .*unexpected keyword argument 'ids'"):
        session({"ids": given["input_ids"]})
    with pytest.raises(InputError, match=said + "IndexError"):
        session({**given, "input_ids": given["input_ids"] + 900})


@pytest.mark.parametrize("weights", ["bfloat16", "float16"])
def test_floats_of_a_batch_are_rounded_however_they_are_held(weights: str, tmp_path: Path) -> None:
    written(DIGITS, tmp_path / "d", engine="torch", weights=weights)
    session = load_deployed(tmp_path / "d")
    images = batches(DIGITS)[0]
    assert torch.equal(session((images,)), session(images))
    assert torch.equal(session({"x": images}), session(images))


def test_what_float16_cannot_hold_is_refused_and_bfloat16_holds_it(tmp_path: Path) -> None:
    """65504 is the largest number of float16: a running variance above it would be infinite."""
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    source = Source(model=f"{tmp_path / 'nets.py'}:net")
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))\n"
    )
    variance = network[1].get_buffer("running_var")
    for largest, weights in ((65000.0, "float16"), (66000.0, "bfloat16")):
        variance[2] = largest
        deployment = Deployment.model_validate({"engine": "torch", "weights": weights})
        inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 100
        deploy(network, tmp_path / weights, deployment, inputs=inputs, source=source)
        found = parity(network, load_deployed(tmp_path / weights), [inputs])
        assert found.relative_difference < 0.02
    refused = Deployment(engine="torch", weights="float16")
    with pytest.raises(InputError, match=r"'1\.running_var' reaches 66000; use weights=bfloat16"):
        deploy(network, tmp_path / "d", refused, inputs=inputs, source=source)


class Scaled(nn.Module):
    """Never reads its second argument, and has a fourth that texts may come without."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(
        self, x: Tensor, unread: Tensor, scale: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        logits: Tensor = self.a(x if mask is None else x * mask) * scale
        return logits


class Recurrent(nn.Module):
    """Is written by PyTorch's older exporter, which leaves the second argument out."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.a = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor, unread: Tensor, scale: Tensor) -> Tensor:
        logits: Tensor = self.a(self.rows(x.unsqueeze(1))[0][:, 0]) * scale
        return logits


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", [Scaled, Recurrent])
def test_positional_inputs_are_the_arguments_of_the_network_in_order(
    kind: type[nn.Module], engine: str, tmp_path: Path
) -> None:
    network = kind().eval()
    given = {"x": torch.rand(2, 4), "unread": torch.full((2, 1), 7.0), "scale": torch.rand(2, 1)}
    wanted = network(**given).detach()
    deployment = Deployment.model_validate({"engine": engine})
    deploy(network, tmp_path / "d", deployment, inputs=given)
    session = load_deployed(tmp_path / "d")
    for inputs in (given, tuple(given.values()), [*given.values()]):
        torch.testing.assert_close(session(inputs), wanted)


def test_inputs_that_deploy_was_not_given_are_refused(tmp_path: Path) -> None:
    network = Scaled().eval()
    given = {"scale": torch.rand(2, 1), "x": torch.rand(2, 4), "unread": torch.zeros(2, 1)}
    record = deploy(network, tmp_path / "d", Deployment(), inputs=given)
    assert record.arguments == ("x", "unread", "scale", "mask")
    session = load_deployed(tmp_path / "d")
    mask = torch.ones(2, 1)
    said = (
        "inputs have '{}', which deploy was not given, .*; leave it out, or deploy with it beside"
    )
    with pytest.raises(InputError, match=said.format("mask")):
        session({**given, "mask": mask})
    with pytest.raises(InputError, match=said.format("mask")):
        session((given["x"], given["unread"], given["scale"], mask))
    with pytest.raises(InputError, match=said.format("scales")):
        session({**given, "scales": mask})
    with pytest.raises(
        InputError, match="inputs are 5, and the network has 4 arguments: x, unread"
    ):
        session((given["x"], given["unread"], given["scale"], None, mask))
    positional = (given["x"], given["unread"], given["scale"], None)
    for inputs in (positional, {**given, "mask": None}):
        torch.testing.assert_close(session(inputs), session(given))
    with pytest.raises(InputError, match="inputs lack scale; the session takes"):
        session({**given, "scale": None})


def test_a_record_without_names_binds_positional_inputs_by_those_of_the_file(
    tmp_path: Path,
) -> None:
    """Deployments of older versions have none."""
    written(LSTM, tmp_path / "d", engine="onnxruntime")
    record = read_deployed(tmp_path / "d")
    record.model_copy(update={"arguments": (), "given": ()}).save(tmp_path / "d" / DEPLOYED_FILE)
    session, given = load_deployed(tmp_path / "d"), batches(LSTM)[0]
    assert isinstance(given, dict)
    ids, mask = given["input_ids"], given["attention_mask"]
    assert torch.equal(session((ids, mask)), session({**given, "other": mask}))
    with pytest.raises(InputError, match="inputs are 3, and the network has 2 arguments"):
        session((ids, mask, mask))


FAR = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, far=1.0, factor=1.0):
        super().__init__()
        self.a, self.b, self.factor = nn.Linear(4, 4), nn.Linear(4, 2), factor
        self.register_buffer("far", torch.tensor(far), persistent=False)

    def forward(self, x):
        h = self.a(x) * self.factor
        return self.b(h / self.factor) + (x[:, :1] > 9) * self.far
"""


CAUSAL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        causal = torch.triu(torch.full((6, 6), -1e9), 1)
        self.register_buffer("causal", causal, persistent=False)

    def forward(self, x):
        h = self.a(x)
        scores = h @ h.transpose(1, 2) + self.causal[: x.shape[1], : x.shape[1]]
        return self.b((scores.softmax(-1) @ h).mean(1))
"""


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_masks_of_numbers_beyond_float16_are_deployed(engine: str, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(CAUSAL, encoding="utf-8")
    source = Source(model=f"{tmp_path / 'nets.py'}:Net")
    network = load_source(source).eval()
    inputs = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    asked = Deployment.model_validate({"engine": engine, "weights": "float16"})
    deploy(network, tmp_path / "d", asked, inputs=inputs, source=source)
    found = parity(network, load_deployed(tmp_path / "d"), [inputs])
    assert found.relative_difference < 0.01


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"far": -1e9}, id="a buffer in no state, infinite, is multiplied by zeros"),
        pytest.param({"factor": 1e6}, id="sums are too large"),
    ],
)
def test_what_float16_cannot_hold_is_refused_where_the_network_answers(
    arguments: dict[str, float], tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(FAR, encoding="utf-8")
    source = Source(model=f"{tmp_path / 'nets.py'}:Net", arguments=arguments)
    network, inputs = load_source(source), torch.rand(3, 4)
    refused = Deployment(engine="torch", weights="float16")
    with pytest.raises(
        InputError, match=r"weights=float16 .* infinities or NaN, .*weights=bfloat16"
    ):
        deploy(network, tmp_path / "d", refused, inputs=inputs, source=source)
    assert not (tmp_path / "d").exists()
    with torch.no_grad():  # then the network itself has no answers
        network.get_parameter("b.bias").fill_(float("nan"))
    deploy(network, tmp_path / "d", refused, inputs=inputs, source=source)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_other_floats_is_written_in_float32(
    engine: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    network = load_source(DIGITS).to(dtype).eval()
    wanted = load_source(DIGITS).to(dtype).float().eval()
    images = batches(DIGITS)[0]
    assert isinstance(images, Tensor)
    for weights, bound in (("float32", 1e-5), ("int8", 0.1)):
        folder = tmp_path / weights
        deployment = Deployment.model_validate({"engine": engine, "weights": weights})
        inputs = images.to(dtype)
        record = deploy(
            network, folder, deployment, inputs=inputs, calibration=[inputs], source=DIGITS
        )
        assert record.notes[-1] == "floats of other formats than float32 are written as float32"
        session = load_deployed(folder)
        assert parity(wanted, session, [images]).relative_difference < bound
        assert torch.equal(session(inputs), session(inputs.float()))
    assert {p.dtype for p in network.parameters()} == {dtype}
