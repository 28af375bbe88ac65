"""Buffers that no file of weights holds: refused by name before anything is written, or made anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from prunus.artifact import load, save
from prunus.errors import InputError, PlanMismatchError
from prunus.meter import file_size_bytes
from prunus.records import Source
from prunus.zoo import load_source

FILE = """
import torch
from torch import nn

MAKERS = {
    "coordinates": lambda dense: dense.to_sparse(),
    "quantized": lambda dense: torch.quantize_per_tensor(dense, 0.5, 0, torch.qint8),
}


class Graph(nn.Module):
    # Averages the features of neighbors, of whom the constructor knows.
    def __init__(self, kind="coordinates", persistent=True, last=1.0):
        super().__init__()
        self.linear = nn.Linear(8, 3)
        near = torch.diag(torch.tensor([1.0, 2.0, 3.0, last]))
        self.register_buffer("near", MAKERS[kind](near), persistent=persistent)

    def forward(self, x):
        near = self.near.dequantize() if self.near.is_quantized else self.near.to_dense()
        return self.linear(near @ x)
"""
KINDS = ["coordinates", "quantized"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse:UserWarning"),  # torch tells that they are new
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]


def made(folder: Path, **arguments: Any) -> tuple[nn.Module, Source]:
    (folder / "graph.py").write_text(FILE, encoding="utf-8")
    source = Source(model=f"{folder / 'graph.py'}:Graph", arguments=arguments)
    return load_source(source).eval(), source


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (torch.Tensor.to_sparse, r"torch\.sparse_coo"),
        (torch.Tensor.to_sparse_csr, r"torch\.sparse_csr"),
        (lambda dense: torch.quantize_per_tensor(dense, 0.5, 0, torch.qint8), r"torch\.qint8"),
    ],
    ids=["coordinates", "rows", "quantized"],
)
def test_a_buffer_that_is_not_dense_is_refused_by_name(
    tmp_path: Path, change: Callable[[Tensor], Tensor], kind: str
) -> None:
    network = nn.Linear(4, 4)
    network.register_buffer("near", change(torch.eye(4)))
    with pytest.raises(InputError, match=f"'near' is of {kind}, .*persistent=False") as told:
        save(tmp_path / "a", network, source=Source(model="linear"))
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=f"'near' is of {kind}"):
        file_size_bytes(network)


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_the_constructor_makes_anew_comes_back(tmp_path: Path, kind: str) -> None:
    """What the refusal asks for."""
    network, source = made(tmp_path, kind=kind, persistent=False)
    x = torch.randn(2, 4, 8)
    save(tmp_path / "a", network, source=source, example_inputs=x)
    assert torch.equal(load(tmp_path / "a")(x), network(x))


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_the_constructor_makes_otherwise_is_refused(tmp_path: Path, kind: str) -> None:
    network, source = made(tmp_path, kind=kind, persistent=False)
    other, _ = made(tmp_path, kind=kind, persistent=False, last=4.0)
    cast("Any", network).near = cast("Any", other).near
    with pytest.raises(PlanMismatchError, match="'near' of the network does not come back"):
        save(tmp_path / "a", network, source=source)
