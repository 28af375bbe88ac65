"""The step ``deploy``: what it measures ranges on, and what is told before it."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import prunus.recipe.deployed
from prunus.data import DataSplits, SearchSplit, TestSplit, TrainSplit, from_datasets
from prunus.data.splits import Samples
from prunus.data.text.store import TokenStore
from prunus.data.text.tokenizer import TextTokenizer
from prunus.errors import InputError, PlanMismatchError
from prunus.meter import measure_latencies
from prunus.progress import Silent
from prunus.quantize import deploy, run_fresh
from prunus.quantize.parity import Parity
from prunus.recipe import Deploy, LatencyOptions, Step, Train, compress
from prunus.recipe.state import State
from prunus.recipe.subject import resolve_subject
from prunus.records import DeployedRow, Latency, Source
from prunus.zoo import load_source
from tests.recipe.subjects import Killer

CLASSES, EACH = 4, 30


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.b(torch.relu(self.a(x)))
        return logits


def test_ranges_are_measured_on_as_many_training_samples_of_every_class_as_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As folders of images are, the data are sorted by class: the first samples are all of one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    inputs = torch.randn(len(labels), 6, generator=generator)
    other = torch.randn(20, 6, generator=generator)
    data = from_datasets(
        TensorDataset(inputs, labels), TensorDataset(other, torch.arange(20) % CLASSES)
    )
    class_of: dict[tuple[float, ...], int] = {}
    for given, some in data.train.batches(64):
        assert isinstance(given, torch.Tensor)
        class_of |= {tuple(r.tolist()): int(c) for r, c in zip(given, some, strict=True)}
    seen: list[list[torch.Tensor]] = []

    def spied(*arguments: Any, **options: Any) -> Any:
        seen.append(list(options["calibration"]))
        return deploy(*arguments, **options)

    monkeypatch.setattr(prunus.recipe.deployed, "deploy", spied)
    steps = [Deploy(weights="int8", calibration="static", calibration_samples=20)]
    told = Killer()
    for seed in (0, 0, 1):
        compress(Small().eval(), steps, data, latency=None, seed=seed, progress=told)
    assert told.phases.count("fit weights") == 3  # each within its "deploy to onnxruntime"
    rows = [[tuple(row.tolist()) for row in torch.cat(batches)] for batches in seen]
    for drawn in rows:
        assert Counter(class_of[row] for row in drawn) == dict.fromkeys(range(CLASSES), 5)
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("batch", [1, 40])
def test_a_deployed_network_is_timed_on_as_many_samples_as_its_record_says(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks are looked at on 16 samples at most; more are read for a greater batch."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    train, test = (
        TensorDataset(torch.randn(len(labels), 6, generator=generator), labels) for _ in range(2)
    )
    seen: dict[str, int] = {}

    def spied(named: Any, **options: Any) -> Any:
        seen.update({name: len(inputs) for name, (_, inputs) in named.items()})
        return measure_latencies(named, **options)

    monkeypatch.setattr(prunus.recipe.deployed, "measure_latencies", spied)
    options = LatencyOptions(batch=batch, repeats=30, warmup=1)
    done = compress(
        Small().eval(),
        [Deploy(engine="onnxruntime")],
        from_datasets(train, test),
        latency=options,
    )
    assert seen == dict.fromkeys(("dense", "deployed", "float32"), batch)
    row = done.record.deployed
    assert row is not None
    assert row.latency is not None
    assert row.latency.batch == batch


class Other(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.b(torch.sigmoid(self.a(x)))
        return logits


def test_dense_networks_that_hold_the_same_tensors_are_not_taken_for_each_other_in_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a folder of its own among those that runs share."""
    places: list[str] = []
    took = Latency(
        median_ms=1, p95_ms=1, iqr_ms=0, repeats=1, warmup=1, batch=1, threads=1, device="cpu"
    )
    here = prunus.recipe.deployed
    monkeypatch.setattr(here, "_write", lambda _, place, *__: places.append(place.name))
    monkeypatch.setattr(here, "load_deployed", lambda *_, **__: None)
    monkeypatch.setattr(here, "measure_latencies", lambda named, **_: dict.fromkeys(named, took))
    row = DeployedRow(engine="onnxruntime", weights="int8", embeddings="float32", size_bytes=1)
    for network in (Small(), Other(), Other()):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(0.5)
        subject = resolve_subject(network.eval(), few_rows())
        tools: Any = SimpleNamespace(subject=subject, engines=tmp_path)
        here._timed(row, tmp_path, State.begin(subject), tools, LatencyOptions())
    assert places[0] != places[1] == places[2]


def test_a_latency_that_was_switched_off_is_measured_where_the_network_was_deployed(
    tmp_path: Path,
) -> None:
    network, data, out = Small().eval(), few_rows(), tmp_path / "run"
    step, watch = Deploy(engine="onnxruntime"), Phases()
    first = compress(network, [step], data, out=out, latency=None).record
    looks, fast = data.test.evaluations, LatencyOptions(repeats=30, warmup=1)
    again = compress(
        network, [step], data, out=out, resume=True, progress=watch, latency=fast
    ).record
    assert "deploy to onnxruntime" not in watch.seen and data.test.evaluations == looks
    assert again.scores == first.scores and "latency: switched off" not in again.notes
    row = again.deployed
    assert row is not None and row.latency is not None and row.latency.engine == "onnxruntime"
    assert (again.latency, again.dense_latency) == (row.latency, row.dense_latency)


def test_a_latency_is_measured_anew_where_the_network_was_deployed(tmp_path: Path) -> None:
    network, data, out = Small().eval(), few_rows(), tmp_path / "run"
    step, watch = Deploy(engine="onnxruntime"), Phases()
    options = LatencyOptions(repeats=30, warmup=1, batch=2, threads=1)
    compress(network, [step], data, out=out, latency=options)
    more = options.model_copy(update={"batch": 3})
    row = compress(
        network, [step], data, out=out, resume=True, progress=watch, latency=more
    ).record.deployed
    assert "deploy to onnxruntime" not in watch.seen
    assert row is not None
    for found in (row.latency, row.dense_latency, row.own_float32_latency):
        assert found is not None and found.batch == 3


class Phases(Silent):
    """Notes what a run has begun."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def start(self, phase: str, total: int) -> None:
        self.seen.append(phase)


def few_rows() -> DataSplits:
    x = torch.rand(64, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(64) % CLASSES
    return from_datasets(TensorDataset(x[:48], y[:48]), TensorDataset(x[48:], y[48:]))


class Decides(Small):
    """Cannot be exported: Python decides by a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return logits * 2 if float(logits.detach().max()) > 100 else logits


@pytest.mark.parametrize(
    ("network", "choices", "said"),
    [
        (Small, {"example_inputs": (torch.rand(4, 6), torch.rand(4, 6))}, "is a tuple: to deploy"),
        (Decides, {}, "network cannot be exported"),
    ],
)
def test_what_cannot_be_deployed_is_told_before_a_training(
    network: type[Small], choices: dict[str, Any], said: str
) -> None:
    phases = Phases()
    steps: list[Step] = [Train(epochs=1, lr=0.01), Deploy(weights="int8")]
    with pytest.raises(InputError, match=said):
        compress(network(), steps, few_rows(), latency=None, progress=phases, **choices)
    assert "train" not in phases.seen


@pytest.mark.parametrize("trains", [True, False])
def test_layers_excluded_from_a_format_of_all_are_told_before_anything_is_computed(
    trains: bool,
) -> None:
    data, phases = few_rows(), Phases()
    asked = Deploy(engine="openvino", weights="float16", exclude=("a",))
    steps: list[Step] = [Train(epochs=1, lr=0.01), asked] if trains else [asked]
    with pytest.raises(InputError, match=r"^exclude=\['a'\] is for what int8 leaves in float32"):
        compress(Small(), steps, data, latency=None, progress=phases)
    assert phases.seen == []
    assert data.test.evaluations == 0


def test_inputs_that_cannot_be_deployed_are_told_before_a_look(tmp_path: Path) -> None:
    data, inputs = few_rows(), (torch.rand(4, 6),) * 2
    with pytest.raises(InputError, match="is a tuple: to deploy"):
        compress(Small(), [Deploy()], data, example_inputs=inputs, latency=None, out=tmp_path / "o")
    assert data.test.evaluations == 0
    assert not (tmp_path / "o").exists()


NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, name="gelu", divisor=1.0):
        super().__init__()
        self.a, self.b, self.name = nn.Linear(6, 8), nn.Linear(8, 4), name
        self.register_buffer("divisor", torch.tensor(divisor), persistent=False)

    def forward(self, x):
        if self.name == "past":
            return self.b(nn.functional.linear(self.a(x), self.a.weight.T) @ self.a.weight.T)
        return self.b(getattr(nn.functional, self.name)(self.a(x))) / self.divisor
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "relu"}, "builds another network than the one given: with the same weights"),
        ({"divisor": 2.0}, "'divisor' of the network does not come back"),
    ],
)
def test_a_source_of_another_function_is_refused_before_a_training(
    arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    name, phases = f"{tmp_path / 'nets.py'}:Net", Phases()
    network = load_source(Source(model=name, arguments=arguments))
    steps = [Train(epochs=1, lr=0.01)]
    with pytest.raises(PlanMismatchError, match=said):
        compress(network, steps, few_rows(), source=Source(model=name), progress=phases)
    assert phases.seen == []


def test_a_format_that_pytorch_has_not_for_a_network_is_told_before_a_training(
    tmp_path: Path,
) -> None:
    """It reads a weight past its layer, which int8 does not have, and float32 has."""
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    source = Source(model=f"{tmp_path / 'nets.py'}:Net", arguments={"name": "past"})
    asked = Deploy(engine="torch", weights="int8", rounding="gptq")
    train, phases = Train(epochs=1, lr=0.01), Phases()
    with pytest.raises(InputError, match="has written what does not run: .*exclude"):
        compress(load_source(source), [train, asked], few_rows(), source=source, progress=phases)
    assert phases.seen == ["try torch"]
    left = asked.model_copy(update={"exclude": ("a",)})  # what needs samples waits for the step
    steps: list[Step] = [train, left]
    done = compress(load_source(source), steps, few_rows(), source=source, latency=None)
    assert done.record.deployed is not None


@pytest.mark.parametrize(("difference", "noted"), [(0.5, True), (0.001, False)])
def test_an_engine_that_computes_something_else_in_float32_is_told(
    difference: float, noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = Parity(agreement=0.8, relative_difference=difference, samples=9)
    monkeypatch.setattr(prunus.recipe.deployed, "parity", lambda *_: near)
    done = compress(Small().eval(), [Deploy(engine="onnxruntime")], few_rows(), latency=None)
    row = done.record.deployed
    assert row is not None
    assert any("answers differ by 50.0% of the largest" in note for note in row.notes) == noted


class FirstWord(nn.Module):
    """Right about every text: its class is its first word's, and nothing else is read."""

    def __init__(self, classes: torch.Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding(*classes.shape)
        with torch.no_grad():
            self.embedding.weight.copy_(classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.embedding(input_ids)
        return (rows * attention_mask.unsqueeze(-1)).sum(dim=1)


def test_texts_are_looked_at_by_length_and_judged_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = TextTokenizer.train_wordpiece(["yes no so"], 64)
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (160,), generator=draw)
    fills = torch.randint(30, (160,), generator=draw).tolist()
    said = [
        " ".join([("no", "yes")[label], *["so"] * fill])
        for label, fill in zip(labels.tolist(), fills, strict=True)
    ]
    store = TokenStore(said, labels, tokenizer, 40)
    parts = torch.arange(160).split([48, 16, 96])
    train, search, test = (Samples("toy", store, part, 2) for part in parts)
    data = DataSplits("toy", TrainSplit(train), SearchSplit(search), TestSplit(test), 2)
    classes = torch.zeros(tokenizer.vocab_size, 2)
    for index, word in enumerate(("no", "yes")):
        classes[store.tokenizer.encode([word], 40)[0][1], index] = 1
    widths: list[int] = []

    def spied(folder: Path, batches: Any, **options: Any) -> Any:
        kept = list(batches)
        widths.extend(batch["input_ids"].shape[1] for batch in kept)
        return run_fresh(folder, kept, **options)

    monkeypatch.setattr(prunus.recipe.deployed, "run_fresh", spied)
    done = compress(FirstWord(classes).eval(), [Deploy(engine="onnxruntime")], data, latency=None)
    deployed = done.record.score("deployed")
    assert deployed is not None
    assert deployed.top1 == 1
    assert len(widths) == 3
    assert widths == sorted(set(widths))
    assert data.test.evaluations == 2  # the dense network's look, and this one
