"""Files of PyTorch as an engine: what is written runs, and tells where it is no longer what it was."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from prunus.artifact import load
from prunus.errors import InputError, PlanMismatchError
from prunus.quantize import Deployment, deploy, load_deployed, parity
from prunus.quantize.torch_engine import TorchSession
from prunus.records import Source
from prunus.zoo import load_source

FILE = """
import torch
import torch.nn.functional as F
from torch import nn


class Words(nn.Module):
    def __init__(self, kind="plain"):
        super().__init__()
        self.kind = kind
        self.table, self.a = nn.Embedding(50, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.register_buffer("place", torch.linspace(0, 1, 8), persistent=False)
        if kind == "half":
            self.to(torch.bfloat16)
        if kind == "normed":
            self.a = nn.utils.parametrizations.weight_norm(self.a)
        if kind == "product":
            self.w = nn.Parameter(torch.eye(8))

    def forward(self, x):
        h = torch.relu(self.a(self.table(x).mean(1) + self.place))
        if self.kind == "tied by function":
            return F.linear(h, self.table.weight)
        if self.kind == "past the layer":
            return F.linear(h, F.normalize(self.head.weight))
        return self.head(h @ self.w if self.kind == "product" else h)
"""


ACTIVATED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(8, 16), nn.Linear(16, 3), kind

    def forward(self, x):
        x = x.sub_(3.0) if self.kind == "relu_" else x
        return self.b(getattr(torch, self.kind)(self.a(x)))
"""


def source_of(tmp_path: Path, kind: str) -> Source:
    path = tmp_path / "words.py"
    path.write_text(FILE, encoding="utf-8")
    return Source(model=f"{path}:Words", arguments={"kind": kind})


def words() -> torch.Tensor:
    return torch.randint(50, (4, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weights", ["float32", "int8", "bfloat16"])
def test_a_network_in_bfloat16_is_written_with_all_that_its_constructor_sets(
    weights: str, tmp_path: Path
) -> None:
    source = source_of(tmp_path, "half")
    network = load_source(source)
    deployment = Deployment.model_validate({"engine": "torch", "weights": weights})
    deploy(network, tmp_path / "d", deployment, inputs=words(), source=source)
    wanted = network(words()).float()
    difference = (load_deployed(tmp_path / "d")(words()) - wanted).abs().max()
    assert difference <= 0.03 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["tied by function", "past the layer"])
def test_what_reads_weights_past_int8_layers_is_refused_where_it_is_written(
    kind: str, tmp_path: Path
) -> None:
    source = source_of(tmp_path, kind)
    deployment = Deployment(engine="torch", weights="int8", embeddings="int8")
    with pytest.raises(InputError, match="engine=torch has written what does not run: .*exclude"):
        deploy(load_source(source), tmp_path / "d", deployment, inputs=words(), source=source)
    assert not (tmp_path / "d").exists()


def test_weights_that_were_tied_after_the_constructor_are_tied_again(tmp_path: Path) -> None:
    source = source_of(tmp_path, "plain")
    network = load_source(source)
    head, table = network.get_submodule("head"), network.get_submodule("table")
    head.register_parameter("weight", table.get_parameter("weight"))
    deployment = Deployment(engine="torch", weights="int8", embeddings="int8")
    deploy(network, tmp_path / "d", deployment, inputs=words(), source=source)
    wanted = network(words())
    difference = (load_deployed(tmp_path / "d")(words()) - wanted).abs().max()
    assert difference <= 0.03 * wanted.abs().max()


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_changed_constructor_is_told(weights: str, tmp_path: Path) -> None:
    source = source_of(tmp_path, "plain")
    deployment = Deployment.model_validate({"engine": "torch", "weights": weights})
    deploy(load_source(source), tmp_path / "d", deployment, inputs=words(), source=source)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_deployed(tmp_path / "d")
    (tmp_path / "words.py").write_text(FILE.replace("torch.relu", "torch.tanh"), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"words\.py' has changed since"):
        load_deployed(tmp_path / "d")


@pytest.mark.parametrize("weights", ["float32", "int8", "bfloat16"])
def test_a_source_of_another_architecture_with_the_same_tensors_is_refused(
    weights: str, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(ACTIVATED, encoding="utf-8")
    ours, theirs = (
        Source(model=f"{tmp_path / 'nets.py'}:Net", arguments={"kind": kind})
        for kind in ("tanh", "relu")
    )
    network = load_source(ours)
    deployment = Deployment.model_validate({"engine": "torch", "weights": weights})
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        PlanMismatchError, match="builds another network .*outputs on inputs differ"
    ):
        deploy(network, tmp_path / "d", deployment, inputs=x, source=theirs)
    assert not (tmp_path / "d").exists()
    deploy(network, tmp_path / "d", deployment, inputs=x, calibration=[x], source=ours)
    with pytest.raises(InputError, match="^inputs: the network does not run on them: .*one real"):
        deploy(network, tmp_path / "d", deployment, inputs=x[:, 1:], source=ours)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_network_that_works_in_place_on_its_inputs_is_compared_on_copies(
    weights: str, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(ACTIVATED, encoding="utf-8")
    source = Source(model=f"{tmp_path / 'nets.py'}:Net", arguments={"kind": "relu_"})
    network = load_source(source)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    deployment = Deployment.model_validate({"engine": "torch", "weights": weights})
    given = x.clone()
    deploy(network, tmp_path / "d", deployment, inputs=given, source=source)
    found = parity(network, load_deployed(tmp_path / "d"), [given])
    assert torch.equal(given, x)
    assert found.relative_difference <= (1e-6 if weights == "float32" else 0.05)


def test_a_deployment_in_float16_is_an_artifact_too(tmp_path: Path) -> None:
    source = source_of(tmp_path, "plain")
    network = load_source(source)
    deployment = Deployment(engine="torch", weights="float16")
    deploy(network, tmp_path / "d", deployment, inputs=words(), source=source)
    weight = load(tmp_path / "d").get_parameter("head.weight")
    assert torch.equal(weight, network.get_parameter("head.weight").half())


@pytest.mark.parametrize(("kind", "told"), [("normed", "ParametrizedLinear"), ("product", "Words")])
def test_matrices_that_are_of_no_linear_layer_are_noted(
    kind: str, told: str, tmp_path: Path
) -> None:
    source = source_of(tmp_path, kind)
    deployment = Deployment(engine="torch", weights="int8")
    written = deploy(load_source(source), tmp_path / "d", deployment, inputs=words(), source=source)
    assert any(f"torch: {told} stay in float32" in note for note in written.notes)


def test_a_call_of_a_session_sets_no_modes(tmp_path: Path) -> None:
    """What is timed is the network, as the dense one is that it is compared with."""
    source = source_of(tmp_path, "plain")
    network = load_source(source).eval()
    deploy(network, tmp_path / "to", Deployment(engine="torch"), inputs=words(), source=source)
    session = load_deployed(tmp_path / "to")
    assert isinstance(session, TorchSession)
    assert not session.network.training

    def walked(_network: nn.Module) -> None:
        pytest.fail("modules are walked over")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(session.network), "modules", walked)
        logits = session(words())
    assert torch.equal(logits, network(words()).detach())


def test_what_deploy_is_given_is_checked_first(tmp_path: Path) -> None:
    network, x = nn.Sequential(nn.Linear(8, 4)), torch.rand(4, 8)
    plain, static = Deployment(), Deployment(weights="int8", calibration="static")

    def refused(said: str, *given: object, **more: object) -> None:
        first = (network, tmp_path / "d", plain)
        with pytest.raises(InputError, match=said):
            deploy(*(*given, *first[len(given) :]), **({"inputs": x} | more))  # type: ignore[arg-type]

    refused("network is the class Linear", nn.Linear)
    refused("deployment is a str; give one such as", network, tmp_path / "d", "int8")
    refused("inputs is a tuple; give a tensor", inputs=(x,))
    refused("source is a str; give", source="x.py:N")
    refused("is one batch; give several", network, tmp_path / "d", static, calibration=x)
    refused(
        "calibration is of type int; give batches", network, tmp_path / "d", static, calibration=5
    )
    refused(r"calibration\[0\] is a list", network, tmp_path / "d", static, calibration=[[x, 1]])
    refused(r"example_inputs\['scale'\] is a float", inputs={"input": x, "scale": 2.0})


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_buffers_whose_values_lie_in_one_place_come_back(weights: str, tmp_path: Path) -> None:
    """``expand`` makes such; nothing can be copied into them."""
    path = tmp_path / "scaled.py"
    path.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Scaled(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(8, 2)\n"
        "        self.register_buffer('scale', torch.tensor(2.0).expand(8))\n\n"
        "    def forward(self, x):\n        return self.a(x * self.scale)\n",
        encoding="utf-8",
    )
    source, inputs = Source(model=f"{path}:Scaled"), torch.rand(3, 8)
    network = load_source(source).eval()
    network.scale = torch.linspace(1, 3, 8)  # after a training
    deployment = Deployment.model_validate({"engine": "torch", "weights": weights})
    deploy(network, tmp_path / "d", deployment, inputs=inputs, source=source)
    wanted = network(inputs).detach()
    assert (load_deployed(tmp_path / "d")(inputs) - wanted).abs().max() <= 0.03 * wanted.abs().max()


def test_complex_buffers_come_back(tmp_path: Path) -> None:
    path = tmp_path / "turns.py"
    path.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Turns(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(4, 2)\n"
        "        self.register_buffer('turn', torch.full((2,), 1j))\n\n"
        "    def forward(self, x):\n        return (super().forward(x) * self.turn).imag\n",
        encoding="utf-8",
    )
    source, inputs = Source(model=f"{path}:Turns"), torch.rand(3, 4)
    network = load_source(source).eval()
    deploy(network, tmp_path / "d", Deployment(engine="torch"), inputs=inputs, source=source)
    torch.testing.assert_close(load_deployed(tmp_path / "d")(inputs), network(inputs).detach())
