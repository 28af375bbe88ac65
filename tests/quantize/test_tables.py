"""Tables of words as bytes, and what files of floats hold, engine by engine."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from prunus.data import Inputs
from prunus.errors import InputError
from prunus.quantize import Deployment, deploy, load_deployed, parity
from prunus.records import Source
from prunus.zoo import load_source
from tests.quantize.networks import BERT, written


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_tied_table_is_bytes_in_other_engines_too(engine: str, tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(4000, 64), nn.Linear(64, 4000, bias=False)
            self.out.weight = self.words.weight

        def forward(self, input_ids: Tensor) -> Tensor:
            found: Tensor = self.out(self.words(input_ids).mean(1))
            return found

    network, generator = Wide().eval(), torch.Generator().manual_seed(0)
    inputs: Inputs = {"input_ids": torch.randint(4000, (5, 8), generator=generator)}
    sizes, table = {}, 4000 * 64
    for weights, tables in (("float32", "float32"), ("float32", "int8"), ("int8", "int8")):
        folder = tmp_path / (weights + tables)
        asked = Deployment.model_validate(
            {"engine": engine, "weights": weights, "embeddings": tables}
        )
        done = deploy(network, folder, asked, inputs=inputs, calibration=[inputs])
        sizes[weights, tables] = done.size_bytes
        assert parity(network, load_deployed(folder), [inputs]).relative_difference < 0.05
        both = engine == "onnxruntime" and (weights, tables) == ("float32", "int8")
        assert any("holds both forms" in note for note in done.notes) == both
    assert sizes["float32", "float32"] == pytest.approx(4 * table, rel=0.02)
    # A form in bytes beside the floats of the layer, or the two of them in bytes.
    assert sizes["float32", "int8"] < (5.2 if engine == "onnxruntime" else 1.2) * table
    assert sizes["int8", "int8"] < 2.2 * table


def test_each_row_of_a_table_has_a_scale_of_its_own_in_every_engine(tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text(
        "from torch import nn\n\nclass Look(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.words = nn.Embedding(50, 8)\n\n"
        "    def forward(self, input_ids):\n        return self.words(input_ids).mean(1)\n"
    )
    source = Source(model=f"{tmp_path / 'looks.py'}:Look")
    network = load_source(source).eval()
    with torch.no_grad():
        network.get_parameter("words.weight")[7] *= 1000  # one row of great numbers
    ids = torch.arange(50).reshape(50, 1)
    wanted = network(ids).detach()
    step = wanted.abs().amax(1, keepdim=True) / 127
    for engine in ("torch", "onnxruntime", "openvino"):
        asked = Deployment.model_validate({"engine": engine, "embeddings": "int8"})
        deploy(network, tmp_path / engine, asked, inputs={"input_ids": ids}, source=source)
        found = load_deployed(tmp_path / engine)({"input_ids": ids})
        # Half a step of its own row, and what float16 does to a scale.
        assert bool(((found - wanted).abs() <= 0.51 * step).all()), engine


def test_a_float32_file_carries_no_more_than_a_quantized_one(tmp_path: Path) -> None:
    network = load_source(BERT)
    written(BERT, tmp_path / "plain", network)
    model = onnx.load(tmp_path / "plain" / "model.onnx")
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    floats = sum(4 * p.numel() for p in network.parameters())
    assert (tmp_path / "plain" / "model.onnx").stat().st_size < floats + 60_000


def test_openvino_refuses_what_float16_cannot_hold(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        network.get_parameter("0.weight")[0, 0] = 1e5
    asked = Deployment(engine="openvino", weights="float16")
    with pytest.raises(
        InputError, match=r"ends at 65504, and '0\.weight' reaches 100000; use weights=float32"
    ):
        deploy(network, tmp_path / "d", asked, inputs=torch.randn(2, 4))


def test_a_table_that_no_row_is_looked_up_in_is_told_of(tmp_path: Path) -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.tags = nn.Embedding(40, 16), nn.Embedding(30, 16)
            self.out = nn.Linear(16, 4)

        def forward(self, input_ids: Tensor) -> Tensor:
            hot = (input_ids.unsqueeze(-1) == torch.arange(30)).float()
            found: Tensor = self.out((self.words(input_ids) + hot @ self.tags.weight).mean(1))
            return found

    inputs: Inputs = {"input_ids": torch.arange(30).reshape(3, 10)}
    asked = Deployment(engine="onnxruntime", weights="float32", embeddings="int8")
    done = deploy(Counted().eval(), tmp_path / "net", asked, inputs=inputs)
    (note,) = done.notes
    assert note.startswith("onnxruntime: table 'tags' stays in float32")
