"""``exclude``: layers that have several names, and formats that leave no layer alone."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError
from prunus.quantize import Deployment, deploy, load_deployed, read_deployed
from prunus.quantize.session import DEPLOYED_FILE
from prunus.quantize.torch_int8 import Int8Embedding
from prunus.records import Source


class Shared(nn.Module):
    """A table and a layer of two names each; the first is the one that the network calls."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.a, self.out = nn.Embedding(40, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.again, self.table = self.a, self.words

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.relu(self.a(self.words(input_ids).mean(1))))
        return logits


SHARED = Source(model=f"{__file__}:Shared")
NAMES = pytest.mark.parametrize(
    "names", [("a", "words"), ("again", "table"), ("a", "again", "words", "table")]
)


def deployed(folder: Path, **choices: Any) -> None:
    torch.manual_seed(0)
    ids = torch.randint(40, (8, 5), generator=torch.Generator().manual_seed(0))
    deployment = Deployment.model_validate({"weights": "int8", "embeddings": "int8", **choices})
    network = Shared().eval()
    deploy(network, folder, deployment, inputs=ids, calibration=[ids], source=SHARED)


@NAMES
def test_pytorch_leaves_a_layer_alone_by_any_of_its_names(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    deployed(tmp_path / "d", engine="torch", exclude=names)
    network = load_deployed(tmp_path / "d").network  # type: ignore[attr-defined]
    assert network.a is network.again
    assert type(network.a) is nn.Linear
    assert network.words is network.table
    assert type(network.words) is nn.Embedding
    assert type(network.out) is not nn.Linear
    deployed(tmp_path / "all", engine="torch")
    every = load_deployed(tmp_path / "all").network  # type: ignore[attr-defined]
    assert every.a is every.again
    assert type(every.a) is not nn.Linear
    assert type(every.table) is Int8Embedding


@NAMES
@pytest.mark.parametrize("calibration", ["dynamic", "static"])
def test_onnx_leaves_a_layer_alone_by_any_of_its_names(
    calibration: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    deployed(tmp_path / "d", calibration=calibration, exclude=names)
    held = onnx.load(str(tmp_path / "d" / "model.onnx")).graph.initializer
    int8 = sorted(list(one.dims) for one in held if one.data_type == onnx.TensorProto.INT8)
    assert [sorted(dims) for dims in int8 if len(dims) == 2] == [[3, 64]]


@pytest.mark.parametrize(
    ("engine", "weights"), [("torch", "bfloat16"), ("torch", "float16"), ("openvino", "float16")]
)
def test_formats_of_all_layers_leave_none_alone(engine: str, weights: str, tmp_path: Path) -> None:
    said = rf"^exclude=\['head'\] is for what int8 leaves .* weights={weights} is for all layers; leave"
    with pytest.raises(InputError, match=said):
        deployed(
            tmp_path / "d", engine=engine, weights=weights, embeddings="float32", exclude=["head"]
        )
    assert not (tmp_path / "d").exists()


def test_a_deployment_from_before_that_was_refused_loads(tmp_path: Path) -> None:
    deployed(tmp_path / "d", engine="torch", weights="bfloat16", embeddings="float32")
    ids = torch.arange(10).reshape(2, 5)
    wanted = load_deployed(tmp_path / "d")(ids)
    file = tmp_path / "d" / DEPLOYED_FILE
    record = json.loads(file.read_text(encoding="utf-8"))
    record["deployment"]["exclude"] = ["head"]
    file.write_text(json.dumps(record), encoding="utf-8")
    assert read_deployed(tmp_path / "d").deployment.exclude == ("head",)
    assert torch.equal(load_deployed(tmp_path / "d")(ids), wanted)
    deployed(tmp_path / "d", engine="torch")  # replaced
    assert read_deployed(tmp_path / "d").deployment.exclude == ()
