"""Exported networks for texts: what is shared is stored once, and any batch and length is taken."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from prunus.artifact import export, verify_export
from prunus.artifact.export import store_once
from prunus.errors import InputError


class Shared(nn.Module):
    """Two layers of one weight, called on inputs of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 24)
        self.one = nn.Linear(24, 24)
        self.two = nn.Linear(24, 24)
        self.two.weight = self.one.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.two(self.one(self.table(input_ids)).relu())
        out: Tensor = (hidden * attention_mask.unsqueeze(2)).sum(1)
        return out


class Loop(Shared):
    """With an LSTM between: written by the older exporter."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 24, batch_first=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.one(self.table(input_ids)))
        out: Tensor = (self.two(hidden) * attention_mask.unsqueeze(2)).sum(1)
        return out


def texts(samples: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(30, (samples, length), generator=torch.Generator().manual_seed(length))
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < 5).expand_as(ids).float()}


@pytest.mark.parametrize("kind", [Shared, Loop])
def test_a_shared_weight_is_in_the_file_once(kind: type[Shared], tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kind().eval()
    path = tmp_path / "n.onnx"
    export(network, path, texts(2, 6), dynamic_length=True)
    for samples, length in ((1, 7), (3, 33)):
        assert verify_export(path, network, texts(samples, length)) < 1e-5
    model = onnx.load(str(path))
    squares = [t for t in model.graph.initializer if list(t.dims) == [24, 24]]
    assert len(squares) == 1
    free = {d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim}
    assert len(free - {""}) == 2, "batch and length"


def test_constants_that_a_branch_reads_stay(tmp_path: Path) -> None:
    """A branch names constants of the graph around it, where no input of a node tells of them."""
    values = [1.0, 2.0]
    constants = [helper.make_tensor(n, TensorProto.FLOAT, [2], values) for n in ("a", "b")]
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    branch = helper.make_graph([helper.make_node("Identity", ["b"], ["y"])], "branch", [], [made])
    node = helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
        constants,
    )
    path = tmp_path / "branch.onnx"
    onnx.save(helper.make_model(graph), str(path))
    store_once(path)
    assert {t.name for t in onnx.load(str(path)).graph.initializer} == {"a", "b"}


def positive(samples: int, length: int) -> dict[str, Tensor]:
    """Pieces and a mask of whole numbers: taken for each other, they fit."""
    given = texts(samples, length)
    return {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"].long()}


@pytest.mark.parametrize("kind", [Shared, Loop])
def test_inputs_are_named_as_the_network_declares_them_whatever_their_order(
    kind: type[Shared], tmp_path: Path
) -> None:
    network, path = kind().eval(), tmp_path / "n.onnx"
    given = positive(2, 6)
    export(network, path, dict(reversed(given.items())), dynamic_length=True)
    assert [node.name for node in onnx.load(str(path)).graph.input] == list(given)
    for inputs in (positive(3, 8), dict(reversed(positive(3, 8).items()))):
        assert verify_export(path, network, inputs) < 1e-5


class Unread(Loop):
    """Declares an argument that it does not read."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_ids, torch.ones_like(input_ids))


def test_an_argument_that_is_not_read_is_none_of_the_file(tmp_path: Path) -> None:
    network, given, path = Unread().eval(), texts(2, 6), tmp_path / "n.onnx"
    for inputs in (given, tuple(given.values())):
        export(network, path, inputs, dynamic_length=True)
        assert len(onnx.load(str(path)).graph.input) == 1
        assert verify_export(path, network, inputs) < 1e-5


class Mean(Loop):
    """Divides by a length that is a number of Python."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_ids, attention_mask) / int(input_ids.shape[1])


class Branch(Loop):
    """Decides by the values of a tensor."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if attention_mask.all():
            return super().forward(input_ids, torch.ones_like(attention_mask))
        return super().forward(input_ids, attention_mask)


@pytest.mark.parametrize("kind", [Mean, Branch])
def test_what_python_decides_would_be_fixed_in_the_file_and_is_refused(
    kind: type[Loop], tmp_path: Path
) -> None:
    where = rf"line \d+ of .*{Path(__file__).name} makes a number of Python of a tensor"
    with pytest.raises(InputError, match=where):
        export(kind().eval(), tmp_path / "n.onnx", texts(2, 6), dynamic_length=True)
    assert not list(tmp_path.iterdir())
