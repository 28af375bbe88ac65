"""What cannot work is refused before any compute, in words; what can is not."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.compute import Compute
from prunus.errors import BudgetError, InputError, MissingExtraError, PrunusError
from prunus.graph import held_connections, trace
from prunus.progress import Silent
from prunus.recipe import (
    Deploy,
    Prune,
    Recipe,
    Repeat,
    Step,
    Student,
    Train,
    compare,
    compress,
    train_network,
)
from prunus.recipe.actions import lay_out
from prunus.recipe.reachable import first_misfit
from prunus.train import TrainConfig
from tests.recipe.subjects import STEPS, few_digits, trained_cnn


def _smallest_go(*ignore: str) -> Prune:
    return Prune(method="magnitude-weights", options={"sparsity": 0.5, "ignore": ignore})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": "digits_cnn"}, "model 'digits_cnn' has no weights"),
        ({"network": None}, "model is missing"),
        ({"data": None}, "data is missing"),
        ({"data": "digitz"}, "data 'digitz' is unknown"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"recipe": [Prune(method="l1", target="macs=0.0001")]}, "cannot be reached"),
        ({"recipe": []}, "recipe: steps: empty; give at least one"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"resume": True}, "resume=True is given without out="),
        ({"latency": 3}, "latency is 3; give prunus.recipe.LatencyOptions"),
        ({"compute": "serial"}, "compute is 'serial'; give prunus.Compute"),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to("meta")}, "the meta device"),
        ({"recipe": [Prune(method="layers", target="macs=0.5")]}, "needs a stack of like layers"),
        (
            {
                "recipe": [
                    Prune(method="taylor", target="macs=0.5", options={"least_share": 0.9}),
                    *STEPS[1:],
                ]
            },
            "raise the target, or lower min_units, round_to or least_share",
        ),
        (
            {"recipe": [*STEPS, Prune(method="vocabulary", target="params=0.5")]},
            "finds no table that DigitsCNN looks the tokens of texts up in",
        ),
        (
            {"recipe": [Prune(method="svd", target="params=0.5", options={"ignore": ("fc*",)})]},
            "method 'svd' finds no layer to factorize: let it factorize more",
        ),
        (
            {"recipe": [*STEPS[1:], Prune(method="tucker", target="macs=0.001")]},
            "target macs=0.001 allows",
        ),
        (
            {"recipe": [Prune(method="tucker", target="macs=0.1", options={"rank": 0.9})]},
            "rank=0.9 of method 'tucker' leaves",
        ),
        (
            {"recipe": [Repeat(times=1, steps=(Prune(method="tucker", target="params=0.001"),))]},
            "where method 'tucker' gives every layer rank 1: raise the target",
        ),
        (
            {"recipe": [*STEPS, _smallest_go("head*")]},
            "ignore: 'head*' matches no layer to prune; layers are conv1, conv2, conv3, conv4, fc",
        ),
        (
            {"recipe": [_smallest_go()], "network": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))},
            "finds no linear or convolutional layer before the output layer of Sequential",
        ),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}, "3 outputs"),
        ({"network": nn.Linear(3, 10)}, "does not run on data 'digits'"),
        (
            {"recipe": [Student(model="digits_cnn", embeddings="teacher"), STEPS[-1]]},
            "embeddings='teacher': the student, DigitsCNN, has 0 tables of word embeddings",
        ),
        (
            {"recipe": Recipe(steps=STEPS, ignore=("none*",))},
            "ignore pattern 'none*' matches no module",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_any_look(change: dict[str, object], said: str) -> None:
    data = few_digits()
    given = {"network": trained_cnn(), "recipe": STEPS, "data": data, **change}
    with pytest.raises(PrunusError) as caught:
        compress(**{"latency": None, **given})  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert data.test.evaluations == 0


def test_a_deployment_that_cannot_be_written_is_refused_before_all_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, cut = few_digits(), Prune(method="l1", target="macs=0.5")
    for package, engine, weights in (
        ("onnx", "onnxruntime", "float32"),
        ("openvino", "openvino", "float32"),
        ("nncf", "openvino", "int8"),
    ):
        step = Deploy.model_validate({"engine": engine, "weights": weights})
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(MissingExtraError, match=f"{package} is not installed: pip install"):
                compress(trained_cnn(), [cut, step], data, latency=None)
            with pytest.raises(MissingExtraError, match=f"{package} is not installed: pip install"):
                compare(trained_cnn(), {"first": [cut], "second": [step]}, data, latency=None)
    with pytest.raises(InputError, match="engine=torch needs the source of the network"):
        compress(trained_cnn(), [cut, Deploy(engine="torch")], data, latency=None)
    # Another row's student says nothing of how this row's network is built.
    rows: dict[str, list[Step]] = {
        "taught": [Student(model="digits_cnn"), Train(epochs=1, lr=0.1, distill_alpha=0.5)],
        "not": [cut, Deploy(engine="torch")],
    }
    with pytest.raises(InputError, match="engine=torch needs the source of the network"):
        compare(trained_cnn(), rows, data, latency=None)
    assert data.test.evaluations == 0


class Summed(nn.Module):
    """Nothing of it can be cut but its output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(torch.cumsum(self.a(x.flatten(1)), 1))
        return out


@pytest.mark.parametrize(
    ("package", "step", "compute"),
    [
        ("tensorly", Prune(method="tucker", target="params=0.8"), Compute()),
        ("ray", Prune(method="random-search", target="macs=0.5"), Compute(engine="ray")),
    ],
)
def test_a_missing_package_is_told_before_the_dense_network_is_trained(
    package: str, step: Step, compute: Compute, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("prunus.recipe.dense.fit", None)  # called by none
    first = TrainConfig(epochs=1, lr=0.1)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed: pip install"):
        compress(
            "digits_cnn",
            [step],
            few_digits(),
            train_first=first,
            compute=compute,
            out=tmp_path / "run",
            latency=None,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("here", "give 'auto' or HOST:PORT"),
        ("127.0.0.1:1", "nothing answers"),
        ("auto", "this machine belongs to no Ray cluster"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_before_the_dense_network_is_trained(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Somebody else's may run on this machine.
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda _: None)
    monkeypatch.setattr("prunus.recipe.dense.fit", None)  # called by none
    with pytest.raises(InputError, match=rf"'address' is '{address}'.*{said}"):
        compress(
            "digits_cnn",
            [Prune(method="random-search", target="macs=0.5")],
            few_digits(),
            train_first=TrainConfig(epochs=1, lr=0.1),
            compute=Compute(engine="ray", address=address),
            out=tmp_path / "run",
            latency=None,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["random-search", "l1"])
def test_a_network_that_cannot_be_sent_is_told_before_it_is_trained(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a method that scores candidates; another needs no workers."""
    monkeypatch.setattr("prunus.recipe.dense.fit", None)  # called by none
    network = trained_cnn()
    network.act = lambda x: x  # type: ignore[assignment]  # as a user may
    searching = method == "random-search"
    refused = pytest.raises(InputError, match="cannot be sent to other processes: .*engine=serial")
    with refused if searching else pytest.raises(TypeError, match="NoneType"):
        compress(
            network,
            [Prune(method=method, target="macs=0.5")],
            few_digits(),
            train_first=TrainConfig(epochs=1, lr=0.1, precision="float32", layout="contiguous"),
            compute=Compute(engine="processes"),
            latency=None,
        )


def test_what_a_student_can_reach_does_not_hang_on_the_dense_network() -> None:
    """Dense has 4810 parameters and no units to cut; the student has fewer, and units."""
    data = few_digits()
    train = Train(epochs=1, lr=0.02, batch_size=32, precision="float32", layout="contiguous")
    target = Prune(method="l1", target="params=0.3")
    with pytest.raises(BudgetError, match="cannot be reached"):
        compress(Summed(), [target], data, latency=None)
    steps: list[Step] = [Student(model="digits_cnn", arguments={"width": 0.5}), train, target]
    done = compress(Summed(), steps, data, latency=None)
    assert done.record.cost.params <= 0.3 * 4810


@pytest.mark.parametrize(
    ("student", "target", "said"),
    [
        (
            {"model": "digits_cnn", "arguments": {"width": 0.5}},
            "params=0.0001",
            r"cannot be reached: of the student .* of 4810 are left; ask for params=0\.\d+ or more",
        ),
        ({"model": "digits_cnn", "weights": "nowhere.pt"}, "params=0.3", "nowhere.pt"),
        (
            {"model": "digits_cnn", "arguments": {"num_classes": 3}},
            "params=0.3",
            "3 outputs",
        ),
    ],
)
def test_a_student_that_cannot_be_is_refused_before_any_training(
    student: dict[str, Any], target: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a row behind another row with a student, which says nothing of the later ones."""
    data = few_digits()
    train = Train(epochs=1, lr=0.02, batch_size=32, precision="float32", layout="contiguous")
    steps: list[Step] = [Student.model_validate(student), train, Prune(method="l1", target=target)]
    fine: list[Step] = [Student(model="digits_cnn"), train]
    monkeypatch.setattr("prunus.recipe.execute.fit", None)  # called by none
    with pytest.raises(PrunusError, match=said):
        compress(Summed(), steps, data, latency=None)
    with pytest.raises(PrunusError, match=said):
        compare(Summed(), {"fine": fine, "wrong": steps}, data, latency=None)
    assert data.test.evaluations == 0


@pytest.mark.parametrize("rows", [["l1", "layers"], ["layers", "l1"]])
def test_a_row_that_cannot_work_leaves_the_others_of_a_comparison(rows: list[str]) -> None:
    found = compare(trained_cnn(), rows, few_digits(), "macs=0.5", latency=None)
    assert [run.method for run in found.runs] == ["l1"]
    assert any("layers (seed 0) failed: method 'layers' needs" in n for n in found.runs[0].notes)
    data = few_digits()
    with pytest.raises(PrunusError, match="needs a stack"):
        compare(trained_cnn(), ["layers"], data, "macs=0.5", latency=None)
    assert data.test.evaluations == 0


def test_options_may_name_layers_that_an_earlier_cut_makes() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    thin, sparse = Prune(method="svd", options={"rank": 0.25}), _smallest_go("1.0")
    inputs = torch.ones(2, 1, 8, 8)
    assert first_misfit(lay_out(Recipe(steps=(thin, sparse))), network, inputs) is None
    found = first_misfit(lay_out(Recipe(steps=(sparse, thin))), network, inputs)
    assert "ignore: '1.0' matches no layer to prune" in str(found)
    done = compress(network, [thin, sparse], few_digits(), latency=None)
    held = held_connections(done.network)
    assert list(held) == ["1.1.weight"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Train(epochs=1), "Train: lr is missing: give it"),  # type: ignore[call-arg]
        (lambda: Train(epochs=-1, lr=0.1), "Train: epochs=-1: input should be greater"),
        (
            lambda: Prune(procedure="l1", target="macs=0.5"),  # type: ignore[call-arg]
            "Prune has no setting 'procedure'; settings are step, method, target",
        ),
        (lambda: Compute(engine="serial", workers=4), "Compute: workers=4 needs an engine"),
    ],
)
def test_settings_are_refused_in_one_line(make: Callable[[], object], said: str) -> None:
    with pytest.raises(PrunusError) as caught:
        make()
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)  # what pydantic's own error is, too


def test_targets_of_rows_behind_a_student_are_looked_at() -> None:
    data = few_digits()
    fine: list[Step] = [Student(model="digits_cnn"), Train(epochs=1, lr=0.02)]
    wrong: list[Step] = [Prune(method="l1", target="macs=0.0001")]
    with pytest.raises(BudgetError, match="cannot be reached"):
        compare(trained_cnn(), {"fine": fine, "wrong": wrong}, data, latency=None)
    assert data.test.evaluations == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "lazy layers without shapes"),
        (lambda: nn.Sequential(nn.Flatten(), _normed(nn.Linear(64, 10))), "cannot be copied"),
    ],
)
def test_a_network_that_cannot_be_copied_or_has_no_shapes_is_refused_first(
    make: Callable[[], nn.Module], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        compress(make(), STEPS, few_digits(), latency=None)


def _normed(layer: nn.Module) -> nn.Module:
    with pytest.deprecated_call():
        return nn.utils.weight_norm(layer)


class Highest(Summed):
    """An operation that the trace has no rule for, and that multiplies nothing."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(torch.i0(self.a(x.flatten(1)).tanh()))
        return out


def test_an_operation_without_a_rule_that_multiplies_nothing_is_not_left_out_of_the_macs() -> None:
    network = Highest().eval()
    assert trace(network, torch.randn(2, 1, 8, 8)).cost({}).uncounted == ("i0",)
    train = Train(epochs=1, lr=0.02, batch_size=32, precision="float32", layout="contiguous")
    cost = compress(network, [train], few_digits(), latency=None).record.cost
    assert (cost.macs, cost.uncounted) == (64 * 64 + 64 * 10, ())


def _untaught(**more: float) -> TrainConfig:
    return TrainConfig.model_validate({"epochs": 1, "lr": 0.1, **more})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"device": "tpu"}, "device='tpu' is not a device"),
        ({"device": "cuda:99"}, "CUDA devices are available; use 'cpu'"),
        ({"seed": -1}, "seed=-1 must be at least 0; give 0 or more"),
        ({"config": _untaught(distill_alpha=0.5)}, "distill_alpha=0.5 needs a teacher"),
        ({"config": _untaught(distill_hidden=1.0)}, "distill_hidden=1 needs a teacher"),
    ],
)
def test_a_training_that_cannot_begin_leaves_no_folder(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """A retry with what works would be refused there as another run."""
    given = {"config": _untaught(), "data": few_digits(), **change}
    with pytest.raises(InputError, match=re.escape(said)):
        train_network("digits_cnn", out=tmp_path / "a" / "run", **given)
    assert not (tmp_path / "a").exists()


def test_a_training_looks_at_its_folder_before_all_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="holds 'notes.txt' and is no run"):
        train_network("nowhere", _untaught(), "digits", out=tmp_path)


def test_a_dense_network_that_is_trained_first_has_no_teacher(tmp_path: Path) -> None:
    taught, out = _untaught(distill_alpha=0.5), tmp_path / "run"
    said = r"distill_alpha=0\.5 needs a teacher"
    with pytest.raises(InputError, match=said):
        compress("digits_cnn", STEPS, few_digits(), out=out, train_first=taught)
    with pytest.raises(InputError, match=said):
        compare("digits_cnn", {"a": STEPS}, few_digits(), out=out, train_first=taught)
    assert not out.exists()


def test_a_tensor_that_no_file_can_hold_is_told_before_a_training() -> None:
    network, steps = trained_cnn(), [Prune(method="l1", target="macs=0.5")]
    network.register_buffer("phase", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(
        InputError, match="'phase' is of torch.complex128, which a safetensors file"
    ):
        compress(network, steps, few_digits(), latency=None)
    network.phase = torch.zeros(2, dtype=torch.complex64)
    assert compress(network, steps, few_digits(), latency=None).record.cost.params > 0


def test_a_network_that_is_frozen_whole_is_not_searched_before_it_is_trained() -> None:
    network = trained_cnn()
    network.requires_grad_(False)
    phases: list[str] = []

    class Watching(Silent):
        def start(self, phase: str, total: int) -> None:
            phases.append(phase)

    steps: list[Step] = [Prune(method="l1", target="macs=0.5"), Train(epochs=1, lr=0.1)]
    with pytest.raises(
        InputError, match=r"steps\[1\]\.train: .* has no parameter that requires a gradient"
    ):
        compress(network, steps, few_digits(), latency=None, progress=Watching())
    assert "certify and cut" not in phases


class _Untrainable(nn.Module):
    """Answers in eval mode alone."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.hidden, self.norm = how, nn.Linear(64, 16), nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.training and self.how == "labels":
            return nn.functional.cross_entropy(self.head(self.hidden(x.flatten(1))), labels)  # type: ignore[arg-type]
        assert not (self.training and self.how == "eval only"), "for inference"
        out: Tensor = self.head(self.norm(self.hidden(x.flatten(1))))
        return out.detach() if self.how == "no gradient" else out


@pytest.mark.parametrize(
    ("how", "batch_size", "said"),
    [
        ("labels", 32, "cannot be trained: in train mode it raised TypeError: cross_entropy"),
        (
            "eval only",
            32,
            "cannot be trained: in train mode it raised AssertionError: for inference",
        ),
        (
            "no gradient",
            32,
            "cannot be trained: in train mode it raised RuntimeError: element 0 of",
        ),
        ("", 1, "cannot be trained: .* ValueError: Expected more than 1 value .*of 1 here"),
    ],
    ids=["labels", "eval only", "no gradient", "batches of one"],
)
def test_a_network_that_cannot_be_trained_is_told_before_any_work(
    how: str, batch_size: int, said: str
) -> None:
    train = Train(epochs=1, lr=0.1, batch_size=batch_size)
    data = few_digits()
    with pytest.raises(InputError, match=rf"steps\[1\]\.train: .*Untrainable {said}"):
        compress(_Untrainable(how), [STEPS[0], train], data, latency=None)
    first = TrainConfig(epochs=1, lr=0.1, batch_size=batch_size)
    with pytest.raises(InputError, match=rf"training: .*Untrainable {said}"):
        compress(_Untrainable(how), [STEPS[0]], data, latency=None, train_first=first)
    assert data.test.evaluations == 0
    compress(_Untrainable(how), [STEPS[0]], few_digits(), latency=None)  # cut alone it can be


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_run_without_gradients_is_refused_first(off: Callable[[], Any]) -> None:
    with off(), pytest.raises(InputError, match="gradients are switched off here"):
        compress(trained_cnn(), STEPS, few_digits(), latency=None)
    network, inputs = trained_cnn(), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert trace(network, inputs).cuttable
    with torch.inference_mode(), pytest.raises(InputError, match="watched inside"):
        trace(network, inputs)
