"""An exported file computes what the network computes, at any batch size."""

import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.artifact import export, verify_export
from prunus.errors import InputError, MissingExtraError
from tests.artifact.networks import images

FORMATS = ["onnx", "pt2"]


class Convolutional(nn.Module):
    """Batch norm and dropout: eval and train mode differ."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3)
        self.bn = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.bn(self.conv(x)).relu()
        out: Tensor = self.fc(self.drop(hidden.flatten(1)))
        return out


class TwoInputs(nn.Module):
    """Called by keyword, gives a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = self.embedding(ids) * mask.unsqueeze(-1)
        return {"pooled": hidden.sum(1), "hidden": hidden}


class FixedBatch(nn.Module):
    """Holds for a batch of 4 alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, -1) * 2.0


class NoOnnxOperator(nn.Module):
    """A Bessel function: PyTorch has it, ONNX has not."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.special.bessel_j1(x)
        return out


class Doubling(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _convolutional() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = Convolutional()
    network.bn.running_mean = torch.linspace(-1, 1, 5)
    network.bn.running_var = torch.linspace(0.5, 2, 5)
    return network


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_agrees_at_any_batch_size(
    tmp_path: Path, format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    network = _convolutional().train()
    path = tmp_path / f"model.{format}"
    export(network, path, images(1), format)  # type: ignore[arg-type]  # parametrized
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    for batch in (1, 2, 7):
        assert verify_export(path, network, images(batch, seed=batch)) < 1e-5
    assert network.training, "export works on a copy"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("format", FORMATS)
def test_keyword_inputs_and_several_outputs(tmp_path: Path, format: str) -> None:
    def batch(n: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(n)
        ids = torch.randint(11, (n, 4), generator=generator)
        return {"ids": ids, "mask": (torch.arange(4) < 3).float().expand(n, 4).contiguous()}

    path = tmp_path / f"model.{format}"
    network = TwoInputs()
    export(network, path, batch(2), format)  # type: ignore[arg-type]  # parametrized
    assert verify_export(path, network, batch(5)) < 1e-6


@pytest.mark.parametrize("format", FORMATS)
def test_the_difference_is_relative_to_the_network(tmp_path: Path, format: str) -> None:
    """File: 2x; network asked: 8x. |8x - 2x| / |8x| = 3/4, whatever x."""
    path = tmp_path / f"model.{format}"
    x = torch.tensor([[1.0, -4.0], [0.5, 3.0]])
    export(Doubling(2.0), path, x, format)  # type: ignore[arg-type]  # parametrized
    assert verify_export(path, Doubling(8.0), x) == pytest.approx(0.75, rel=1e-12)
    assert verify_export(path, Doubling(2.0), x) == 0.0
    assert verify_export(path, Doubling(0.0), x) == float("inf")
    assert verify_export(path, Doubling(float("nan")), x) == float("inf")


class Filled(nn.Module):
    """Class 0 is ruled out; boxes of 640 stand beside a score."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1] * 0 - 1e9, 640 * x[:, :1], x[:, 1:] * self.factor], 1)


def test_large_outputs_hide_no_wrong_small_ones(tmp_path: Path) -> None:
    """Scores of 2 and 3 times 1e-3 off, beside boxes of 640: told to a tenth of these, 3e-3 / 64."""
    path = tmp_path / "model.pt2"
    x = torch.tensor([[1.0, 2.0], [0.9, 3.0]])
    export(Filled(1.001), path, x, "pt2")
    assert verify_export(path, Filled(1.0), x) == pytest.approx(3e-3 / 64, rel=1e-3)
    assert verify_export(path, Filled(1.001), x) == 0.0


def test_the_example_inputs_are_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    x = torch.full((2, 3), 0.123456789)
    export(Doubling(2.0), path, x, "pt2")
    needle = x[0, :1].numpy().tobytes() * 3
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist()
        assert not any(needle in archive.read(name) for name in archive.namelist())


def test_wrong_objects_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.pt2"
    makes: Any = partial(Doubling, 2.0)
    nothing: Any = None
    with pytest.raises(InputError, match="network is the function partial; give the network it"):
        export(makes, path, torch.ones(2, 3), "pt2")
    with pytest.raises(InputError, match="example_inputs is a NoneType; give a tensor"):
        export(Doubling(2.0), path, nothing, "pt2")
    assert not path.parent.exists()


def test_a_network_of_one_batch_size_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with pytest.raises(InputError, match=r"network cannot be exported: .*with dynamic_batch=False"):
        export(FixedBatch(), path, torch.ones(4, 3), "pt2")
    assert not path.exists()
    export(FixedBatch(), path, torch.ones(4, 3), "pt2", dynamic_batch=False)
    assert verify_export(path, FixedBatch(), torch.ones(4, 3)) == 0.0


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"to ONNX: .*bessel_j1.*; try format='pt2'") as raised:
        export(NoOnnxOperator(), tmp_path / "m.onnx", torch.ones(2, 3))
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_format_and_suffix_must_agree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="format='tflite' is not known"):
        export(Doubling(1.0), tmp_path / "m.tflite", torch.ones(2, 2), "tflite")  # type: ignore[arg-type]  # the point
    with pytest.raises(InputError, match=r"must end in '\.onnx'"):
        export(Doubling(1.0), tmp_path / "m.pt2", torch.ones(2, 2))


@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize(
    ("place", "said"), [("file/net", "cannot be written: File exists"), ("folder", "is a folder")]
)
def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, format: Any, place: str, said: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / f"folder.{format}").mkdir()
    path = tmp_path / f"{place}.{format}"
    with pytest.raises(InputError, match=f"path='{path}' {said}"):
        export(nn.Linear(4, 2), path, torch.randn(2, 4), format=format)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", f"folder.{format}"]


def test_a_missing_extra_comes_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        MissingExtraError,
        match=r"^onnxscript is not installed: pip install 'prunus\[onnx\]', or '\.\[onnx\]' in its folder$",
    ):
        export(Doubling(1.0), tmp_path / "m.onnx", torch.ones(2, 2))


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2"])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        verify_export(tmp_path / name, Doubling(1.0), torch.ones(2, 2))
    (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(InputError, match=f"{name}' cannot be run on these inputs"):
        verify_export(tmp_path / name, Doubling(1.0), torch.ones(2, 2))


def test_other_output_shapes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    export(Doubling(1.0), path, torch.ones(2, 2), "pt2")
    with pytest.raises(InputError, match=r"gives outputs \[\[2, 2\]\], the network \[\[2, 1\]\]"):
        verify_export(path, nn.Sequential(Doubling(1.0), nn.Linear(2, 1)), torch.ones(2, 2))


class Sum(nn.Module):
    """Takes any number of inputs, which have no names of their own."""

    def forward(self, *terms: Tensor) -> Tensor:
        return terms[0] + 2 * terms[1]


def test_inputs_without_names_are_taken_in_their_order(tmp_path: Path) -> None:
    inputs = (torch.rand(3, 4), torch.rand(3, 4))
    export(Sum(), tmp_path / "n.onnx", inputs, dynamic_batch=False)
    assert verify_export(tmp_path / "n.onnx", Sum(), inputs) < 1e-6


class Adds(nn.Linear):
    """Works in place on what it is given."""

    def __init__(self) -> None:
        super().__init__(4, 2)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input.add_(1.0))


def test_a_network_that_changes_its_inputs_is_verified_on_the_same_ones(tmp_path: Path) -> None:
    network, inputs = Adds(), torch.rand(3, 4)
    before = inputs.clone()
    export(network, tmp_path / "n.onnx", inputs.clone())
    assert verify_export(tmp_path / "n.onnx", network, inputs) < 1e-6
    assert torch.equal(inputs, before)
    with pytest.raises(InputError, match=r"example_inputs\['input'\] is a list"):
        verify_export(tmp_path / "n.onnx", network, {"input": [inputs]})  # type: ignore[dict-item]
