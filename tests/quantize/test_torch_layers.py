"""int8 layers of PyTorch in the place of the network's own: what stays as it was, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import (
    prune,
    remove_spectral_norm,
    remove_weight_norm,
    spectral_norm,
    weight_norm,
)

from prunus.data import Inputs
from prunus.errors import InputError, PlanMismatchError
from prunus.quantize import Deployment, deploy, load_deployed
from prunus.quantize.torch_engine import INT8_FILE
from prunus.quantize.torch_int8 import Int8Embedding
from prunus.records import Source
from prunus.zoo import load_source

INT8 = Deployment(engine="torch", weights="int8", embeddings="int8")
FILE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, kind="plain"):
        super().__init__()
        self.kind = kind
        self.words, self.a, self.out = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        if kind == "hooked":
            self.words.register_forward_pre_hook(lambda layer, given: (given[0] + 1,))
            self.words.register_forward_hook(lambda layer, given, out: 2 * out)
            self.a.register_forward_pre_hook(
                lambda layer, args, named: ((args[0] - 1,), named), with_kwargs=True
            )
            self.a.register_forward_hook(lambda layer, given, out: 3 * out)

    def forward(self, ids):
        h = self.words(ids)
        if self.kind == "prompt":
            h = torch.cat([self.words.weight[1].expand(len(ids), 1, 8), h], 1)
        return self.out(torch.relu(self.a(h.mean(1))))
"""


def source_of(tmp_path: Path, kind: str, text: str = FILE) -> Source:
    path = tmp_path / "net.py"
    path.write_text(text, encoding="utf-8")
    return Source(model=f"{path}:Net", arguments={"kind": kind})


def ids() -> Tensor:
    return torch.randint(48, (4, 6), generator=torch.Generator().manual_seed(0))


def test_a_table_has_no_weight_to_be_read_past_it(tmp_path: Path) -> None:
    """Levels are up to 127: a learned row among them would drown the rest."""
    source = source_of(tmp_path, "prompt")
    tables = INT8.model_copy(update={"weights": "float32"})
    with pytest.raises(InputError, match="does not run: .*no attribute 'weight'; exclude"):
        deploy(load_source(source), tmp_path / "d", tables, inputs=ids(), source=source)
    assert not (tmp_path / "d").exists()
    left = tables.model_copy(update={"exclude": ("words",)})
    network = load_source(source).eval()
    deploy(network, tmp_path / "d", left, inputs=ids(), source=source)
    assert torch.equal(load_deployed(tmp_path / "d")(ids()), network(ids()))


def test_tables_are_stored_under_the_names_that_they_had(tmp_path: Path) -> None:
    source = source_of(tmp_path, "plain")
    deploy(load_source(source), tmp_path / "d", INT8, inputs=ids(), source=source)
    stored = load_file(tmp_path / "d" / INT8_FILE)
    assert stored["words.weight"].shape == (50, 8)
    assert stored["words.scale"].shape == (50,)


@pytest.mark.parametrize("wrong", [-1, 5])
def test_ids_without_a_row_are_refused_as_the_table_in_float_does(wrong: int) -> None:
    table = Int8Embedding.of(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    for layer in (table, nn.Embedding(5, 3)):
        with pytest.raises(IndexError):
            layer(torch.tensor([[0, wrong]]))
    assert table(torch.tensor([[4, 0]], dtype=torch.int32)).shape == (1, 2, 3)


@pytest.mark.parametrize("is_smoothed", [False, True])
def test_hooks_of_layers_act_on_their_int8_form(is_smoothed: bool, tmp_path: Path) -> None:
    source = source_of(tmp_path, "hooked", FILE.replace("8", "64"))
    network = load_source(source).eval()
    with torch.no_grad():  # two columns of outliers
        network.get_parameter("words.weight")[:, 2:4] *= 50
    given = [ids() for _ in range(8)] if is_smoothed else None
    record = deploy(network, tmp_path / "d", INT8, inputs=ids(), calibration=given, source=source)
    assert any("outliers in the inputs" in note for note in record.notes) == is_smoothed
    session = load_deployed(tmp_path / "d")
    wanted = network(ids())
    assert (session(ids()) - wanted).abs().max() <= 0.05 * wanted.abs().max()
    layer = session.network.get_submodule("words")  # type: ignore[attr-defined]
    assert isinstance(layer, Int8Embedding)


@pytest.mark.parametrize(
    ("computes", "told", "remedy"),
    [
        (
            lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
            r"prune\.remove\(layer, 'weight'\)",
            lambda layer: prune.remove(layer, "weight"),
        ),
        (weight_norm, r"remove_weight_norm\(layer\)", remove_weight_norm),
        (spectral_norm, r"remove_spectral_norm\(layer\)", remove_spectral_norm),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_weight_that_is_computed_is_refused_with_its_remedy(
    computes: Callable[[nn.Module], object],
    told: str,
    remedy: Callable[[nn.Module], object],
    tmp_path: Path,
) -> None:
    source = source_of(tmp_path, "plain")
    network = load_source(source).eval()
    layer = network.get_submodule("a")
    computes(layer)
    given: list[Inputs] = [ids()]

    def written(calibration: list[Inputs] | None) -> None:
        folder = tmp_path / "d"
        deploy(network, folder, INT8, inputs=ids(), calibration=calibration, source=source)

    for gradients in (True, False):  # the weight has its gradient, or has none
        with torch.set_grad_enabled(gradients):
            network(ids())
        for calibration in (None, given):
            with pytest.raises(InputError, match=f"layer 'a' computes its weight .*{told}"):
                written(calibration)
    remedy(layer)
    written(given)


COMPUTED = """
from torch import nn


def double(layer, given):
    layer.weight = layer.raw * 2


def net(nested):
    layer = nn.Linear(8, 8)
    layer.raw = nn.Parameter(layer._parameters.pop("weight").detach() / 2)
    layer.register_forward_pre_hook(double)
    return nn.Sequential(layer, nn.Linear(8, 3)) if nested else layer
"""


@pytest.mark.parametrize(("nested", "name"), [(True, "layer '0'"), (False, "the network itself")])
def test_a_weight_that_a_users_code_computes_is_refused_with_what_helps(
    nested: bool, name: str, tmp_path: Path
) -> None:
    """Other engines write what PyTorch can copy: no tensor with its gradient."""
    (tmp_path / "nets.py").write_text(COMPUTED, encoding="utf-8")
    source = Source(model=f"{tmp_path / 'nets.py'}:net", arguments={"nested": nested})
    network, x = load_source(source).eval(), torch.rand(4, 8)
    said = f"^{name} computes its weight .*cannot write; hold it as an nn.Parameter"
    for gradients, more in ((True, ""), (False, ", or use engine=onnxruntime")):
        with torch.set_grad_enabled(gradients):
            network(x)
        with pytest.raises(InputError, match=f"{said}{more}$"):
            deploy(network, tmp_path / "d", INT8, inputs=x, source=source)
    deploy(network, tmp_path / "d", Deployment(weights="int8"), inputs=x)
    with torch.no_grad():
        wanted = network(x)
    assert (load_deployed(tmp_path / "d")(x) - wanted).abs().max() <= 0.03 * wanted.abs().max()


def test_a_stray_file_decides_nothing(tmp_path: Path) -> None:
    """Only files of the record are read: others have no SHA-256 there."""
    source = source_of(tmp_path, "plain")
    network = load_source(source).eval()
    deploy(network, tmp_path / "d", Deployment(engine="torch"), inputs=ids(), source=source)
    sevens = {name: torch.full_like(value, 7.0) for name, value in network.state_dict().items()}
    save_file(sevens, tmp_path / "d" / INT8_FILE)
    assert torch.equal(load_deployed(tmp_path / "d")(ids()), network(ids()))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("nn.Linear(8, 3)", "nn.Linear(8, 1)", r"'out.weight' is \[1, 8\] in it and was \[3, 8\]"),
        ("nn.Embedding(50, 8)", "nn.Embedding(60, 8)", r"'words.weight' is \[60, 8\]"),
        (
            "self.kind = kind",
            "self.kind, self.more = kind, nn.Linear(2, 2)",
            "'more.bias' is in one alone",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*has changed since:UserWarning")
def test_widths_that_changed_in_the_constructor_are_told(
    old: str, new: str, told: str, tmp_path: Path
) -> None:
    source = source_of(tmp_path, "plain")
    deploy(load_source(source), tmp_path / "d", INT8, inputs=ids(), source=source)
    source_of(tmp_path, "plain", FILE.replace(old, new))
    with pytest.raises(PlanMismatchError, match=f"{told}.*deploy again with the source"):
        load_deployed(tmp_path / "d")
