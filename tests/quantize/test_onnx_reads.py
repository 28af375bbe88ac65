"""What works token by token behind the last attention computes for the token that is read alone."""

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from prunus.artifact import export
from prunus.quantize import load_deployed
from prunus.quantize.onnx_reads import compute_what_is_read, compute_what_is_read_
from prunus.records import Source
from prunus.zoo import load_source
from tests.quantize.networks import BERT, DIGITS, LSTM, batches, texts, written

Read = Callable[[Tensor], Tensor]


class Tokens(nn.Module):
    """Mixes tokens once; then two layers with a residual work on each by itself."""

    def __init__(self, read: Read, pair: str = "all") -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6, bias=False)
        self.up, self.down, self.norm = nn.Linear(8, 12), nn.Linear(12, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        self.read, self.pair = read, pair

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x.transpose(1, 2)).transpose(1, 2)
        other = {"all": mixed, "mean": mixed.mean(1, keepdim=True)}[self.pair]
        behind = self.norm(self.down(torch.tanh(self.up(mixed))) + other)
        logits: Tensor = self.head(self.read(behind))
        return logits


def tokens(samples: int = 4) -> Tensor:
    return torch.randn(samples, 6, 8, generator=torch.Generator().manual_seed(samples))


def answers(file: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(file))
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def exported(network: nn.Module, file: Path) -> Path:
    export(network.eval(), file, tokens(2))
    return file


def sizes_of(file: Path) -> dict[str, list[int]]:
    """Shape of every value that a layer's product gives."""
    inferred = onnx.shape_inference.infer_shapes(onnx.load(str(file)), strict_mode=True)
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in inferred.graph.value_info
    }
    products = [node.output[0] for node in inferred.graph.node if node.op_type == "MatMul"]
    return {name: shapes[name] for name in products}


@pytest.mark.parametrize("index", [0, 3, -1])
def test_both_layers_and_what_is_between_compute_for_one_token(index: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = exported(Tokens(lambda x: x[:, index]), tmp_path / "x.onnx")
    wanted = answers(file, tokens())
    # Up and its bias, tanh, down and its bias, the residual, the norm.
    assert compute_what_is_read(file) == 7
    onnx.checker.check_model(str(file), full_check=True)
    assert (answers(file, tokens()) - wanted).abs().max() < 1e-6
    computed = [shape[1:] for shape in sizes_of(file).values()]
    assert computed == [[8, 6], [1, 12], [1, 8]]  # the mixing of all tokens stays


def _first_and_last(x: Tensor) -> Tensor:
    return x[:, 0] + x[:, -1]


def _beside_the_mean(x: Tensor) -> Tensor:
    return x[:, 0] + x.mean(1)


@pytest.mark.parametrize(
    "read",
    [_first_and_last, _beside_the_mean, lambda x: x.mean(1)],
    ids=["two", "mean too", "mean"],
)
def test_what_other_tokens_are_read_of_stays(read: Read, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = exported(Tokens(read), tmp_path / "x.onnx")
    before = file.read_bytes()
    assert compute_what_is_read(file) == 0
    assert file.read_bytes() == before


def test_a_value_that_all_tokens_share_is_not_looked_up(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = exported(Tokens(lambda x: x[:, 3], pair="mean"), tmp_path / "x.onnx")
    wanted = answers(file, tokens())
    # The norm; the sum in front of it has a part without tokens.
    assert compute_what_is_read(file) == 1
    assert (answers(file, tokens()) - wanted).abs().max() < 1e-6


class Answers(nn.Module):
    """Gives what it read as well."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.up(x)
        return self.head(hidden[:, 0]), hidden


def test_what_the_network_answers_with_has_all_its_tokens(tmp_path: Path) -> None:
    model = onnx.load(str(exported(Answers(), tmp_path / "x.onnx")))
    model.graph.value_info.append(model.graph.output[1])  # as some exporters note it
    assert compute_what_is_read_(model) == 0
    del model.graph.output[1]
    assert compute_what_is_read_(model) == 2


class Attends(nn.Module):
    """One head that every token looks at every other with, behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        scores = (hidden @ hidden.transpose(1, 2)).softmax(-1)
        logits: Tensor = self.head((scores @ hidden)[:, 2])
        return logits


def test_what_other_tokens_are_attended_to_for_stays(tmp_path: Path) -> None:
    assert compute_what_is_read(exported(Attends(), tmp_path / "x.onnx")) == 0


def test_a_norm_over_all_tokens_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = onnx.load(str(exported(Tokens(lambda x: x[:, 0]), tmp_path / "x.onnx")))
    (norm,) = (node for node in model.graph.node if node.op_type == "LayerNormalization")
    (axis,) = (part for part in norm.attribute if part.name == "axis")
    axis.i = 1  # its scale, one for each channel, is spread over the tokens
    assert compute_what_is_read_(model) == 0


def test_nothing_moves_where_the_number_of_tokens_is_unknown(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = onnx.load(str(exported(Tokens(lambda x: x[:, 0]), tmp_path / "x.onnx")))
    for value in [*model.graph.value_info, *model.graph.input]:
        if len(value.type.tensor_type.shape.dim) == 3:
            value.type.tensor_type.shape.dim[1].Clear()
    assert compute_what_is_read_(model) == 0


def test_what_a_branch_may_read_has_all_its_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = onnx.load(str(exported(Tokens(lambda x: x[:, 0]), tmp_path / "x.onnx")))
    region = [node.output[0] for node in model.graph.node if node.op_type == "Tanh"]
    inner = onnx.helper.make_node("ReduceSum", region, ["sum"], keepdims=0)
    value = onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, [])
    branch = onnx.helper.make_graph([inner], "branch", [], [value])
    yes = onnx.helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True])
    model.graph.initializer.append(yes)
    model.graph.node.append(
        onnx.helper.make_node("If", ["yes"], ["more"], then_branch=branch, else_branch=branch)
    )
    assert compute_what_is_read_(model) == 0
    del model.graph.node[-1]
    assert compute_what_is_read_(model) == 7


def test_a_bert_computes_three_quarters_of_its_last_layer_for_one_token(tmp_path: Path) -> None:
    file = tmp_path / "bert.onnx"
    export(load_source(BERT).eval(), file, texts(3, 9), dynamic_length=True)
    # Output of the attention, feed-forward up and down: three products of six, with four times the
    # width in between 9 of 12 parts.
    assert compute_what_is_read(file) == 11
    counts = [node.op_type for node in onnx.load(str(file)).graph.node].count("MatMul")
    read = [name for name in sizes_of(file).values() if len(name) == 3 and name[1] == 1]
    assert (counts, len(read)) == (2 * 8, 3)


def test_an_image_transformer_s_last_layer_computes_for_its_first_patch(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8, "num_classes": 3}
    network = load_source(Source(model="hf:config", arguments={"model_type": "vit", **sizes}))
    file, x = tmp_path / "vit.onnx", torch.randn(4, 3, 32, 32)
    export(network.eval(), file, x[:2])
    wanted = answers(file, x)
    # Output of the attention and up and down with their biases, two residuals, two norms, GELU.
    assert compute_what_is_read(file) == 11
    assert (answers(file, x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["bert", "lstm", "digits"])
def test_deployed_networks_answer_as_they_did(engine: str, kind: str, tmp_path: Path) -> None:
    source = {"bert": BERT, "lstm": LSTM, "digits": DIGITS}[kind]
    network = load_source(source).eval()
    written(source, tmp_path / "net", engine=engine)
    session = load_deployed(tmp_path / "net")
    for batch in batches(source):
        with torch.no_grad():
            wanted = network(**batch) if isinstance(batch, dict) else network(batch)
        wanted = getattr(wanted, "logits", wanted)
        assert (session(batch) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
