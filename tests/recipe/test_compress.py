"""One run: costs that agree, one look per stage, an input that stays as it was."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prunus.artifact import load
from prunus.data import DataSplits, from_datasets
from prunus.errors import BudgetError, InputError, PlanMismatchError, PrunusError
from prunus.graph import Trace, cut, trace
from prunus.meter import count_macs, count_params
from prunus.method import Context, Decision, Method
from prunus.plan import Bits, ZeroConnections
from prunus.prune import L1
from prunus.recipe import (
    LatencyOptions,
    Prune,
    Recalibrate,
    Repeat,
    Step,
    Student,
    Train,
    compare,
    compress,
    make_recipe,
    train_network,
)
from prunus.recipe.summarize import _fronts
from prunus.records import (
    Cost,
    FrontPoint,
    RunRecord,
    Source,
)
from prunus.train import TrainConfig, evaluate, fit
from prunus.zoo import build
from tests.recipe.subjects import (
    FAST,
    SHORT,
    STEPS,
    few_digits,
    same_state,
    trained_cnn,
)


def test_the_given_network_stays_as_it_was() -> None:
    network = trained_cnn().train()
    before = copy.deepcopy(network)
    random_state = torch.random.get_rng_state()
    done = compress(network, STEPS, few_digits(), latency=None)
    assert network.training
    assert same_state(network, before)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert not done.network.training


def test_costs_are_those_counted_and_those_predicted() -> None:
    network, data = trained_cnn(), few_digits()
    done = compress(network, STEPS, data, latency=None)
    found = trace(network, torch.randn(2, 1, 8, 8))
    predicted = found.cost(done.plans[0].channels)
    counted = count_macs(done.network, torch.zeros(1, 1, 8, 8)).macs
    assert done.record.cost.macs == predicted.macs == counted
    assert done.record.cost.params == predicted.params == count_params(done.network)
    assert 0.49 * done.record.dense_cost.macs <= counted <= 0.5 * done.record.dense_cost.macs


def test_the_test_split_is_looked_at_once_a_stage() -> None:
    data = few_digits()
    record = compress(trained_cnn(), STEPS, data, latency=None).record
    stages = ["dense", "after_cut", "after_recalibration", "after_training"]
    assert data.test.evaluations == 4
    assert record.test_evaluations == dict.fromkeys(stages, 1)
    assert [score.stage for score in record.scores] == stages
    assert {score.split for score in record.scores} == {"test"}


def test_the_last_score_is_that_of_the_network_returned() -> None:
    done = compress(trained_cnn(), STEPS, few_digits(), latency=None)
    score = done.record.score("after_training")
    assert score is not None
    assert score.value == evaluate(done.network, few_digits().test).top1


def test_rounds_look_once_and_end_at_the_target() -> None:
    data = few_digits()
    inner = (Prune(method="l2-global", target="macs=0.4"), Recalibrate(images=64), SHORT)
    done = compress(trained_cnn(), [Repeat(times=2, steps=inner)], data, latency=None)
    record = done.record
    assert data.test.evaluations == 4
    assert len(done.plans) == len(record.certificates) == 2
    assert all(certificate.passed for certificate in record.certificates)
    assert 0.39 * record.dense_cost.macs <= record.cost.macs <= 0.4 * record.dense_cost.macs
    # geometric: the first round leaves sqrt(0.4) = 63.2 % of dense, less one channel
    first = count_macs(cut(trained_cnn(), done.plans[0]), torch.zeros(1, 1, 8, 8)).macs
    assert 0.6 <= first / record.dense_cost.macs <= 0.4**0.5
    widths = {w.group: (w.before, w.after) for w in record.widths}
    assert widths["conv2"] == (24, done.network.get_parameter("conv2.weight").shape[0])
    judged = [p.step for p in record.history if p.phase == "search split after each step"]
    assert judged == [1, 2, 3]


def test_a_cut_that_costs_other_than_predicted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Trace.cost

    def off_by_one(self: Trace, choice: dict[str, object]) -> Cost:
        cost = honest(self, choice)  # type: ignore[arg-type]
        return cost.model_copy(update={"macs": cost.macs + 1}) if choice else cost

    monkeypatch.setattr(Trace, "cost", off_by_one)
    with pytest.raises(PrunusError, match=r"accounting mismatch: the cut of steps\[0\]\.prune"):
        compress(trained_cnn(), STEPS, few_digits(), latency=None)


def test_a_method_above_its_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.prune.base.uniform_choice", lambda *_: {})
    with pytest.raises(BudgetError, match="allows"):
        compress(trained_cnn(), STEPS, few_digits(), latency=None)


def test_seeds_change_the_training_and_nothing_else() -> None:
    first = compress(trained_cnn(), STEPS, few_digits(), seed=0, latency=None)
    same = compress(trained_cnn(), STEPS, few_digits(), seed=0, latency=None)
    other = compress(trained_cnn(), STEPS, few_digits(), seed=1, latency=None)
    assert same_state(first.network, same.network)
    assert first.record.plans == same.record.plans == other.record.plans
    assert not same_state(first.network, other.network)
    assert (first.record.seed, other.record.seed) == (0, 1)


def test_the_dense_network_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[nn.Module | None] = []

    def spy(*args: object, **kwargs: object) -> object:
        taught.append(kwargs["teacher"])  # type: ignore[arg-type]
        return fit(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("prunus.recipe.execute.fit", spy)
    distil = SHORT.model_copy(update={"distill_alpha": 0.5})
    compress(trained_cnn(), [STEPS[0], SHORT, distil], few_digits(), latency=None)
    plain, teacher = taught
    assert plain is None
    assert teacher is not None
    assert same_state(teacher, trained_cnn())


def test_an_artifact_holds_the_network_and_the_record(tmp_path: Path) -> None:
    out, weights = tmp_path / "run", tmp_path / "dense.pt"
    torch.save(trained_cnn().state_dict(), weights)
    source = Source(model="digits_cnn", weights=str(weights))
    done = compress(source, STEPS, few_digits(), out=out, latency=FAST)
    assert done.artifact_path == out / "artifact"
    assert not any("no artifact" in note for note in done.record.notes)
    again = load(out / "artifact")
    inputs = torch.randn(4, 1, 8, 8)
    assert torch.equal(again(inputs), done.network(inputs))
    assert load(out / "steps" / "01-prune").get_parameter("conv2.weight").shape[0] < 24
    record = done.record
    assert record.search_seen_in_pretraining
    assert record.latency is not None
    assert record.dense_latency is not None
    assert record.latency.repeats == record.dense_latency.repeats == 30
    assert record.latency.threads == torch.get_num_threads()
    assert record.latency.peak_memory_bytes
    # the record's recipe says all that is needed to run it again
    assert make_recipe(record.recipe).model == "digits_cnn"
    assert make_recipe(record.recipe).weights == str(weights)


class _Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.second = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu())
        return out


def test_own_modules_and_data_sets_work(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(90, 6, generator=generator)
    labels = points[:, :3].argmax(1)
    data = from_datasets(
        TensorDataset(points[:60], labels[:60]), TensorDataset(points[60:], labels[60:])
    )
    steps: list[Step] = [
        Prune(method="l1", target="params=0.5"),
        SHORT.model_copy(update={"augment": False}),
    ]
    done = compress(_Own(), steps, data, out=tmp_path / "run", latency=FAST)
    assert done.record.cost.params <= 0.5 * (6 * 16 + 16 + 16 * 3 + 3)
    assert done.artifact_path is None
    assert not (tmp_path / "run" / "artifact").exists()
    # Who keeps the folder learns from the record why prunus.load finds nothing there.
    kept = RunRecord.load(tmp_path / "run" / "record.json")
    (note,) = [note for note in kept.notes if "no artifact was saved" in note]
    assert "source=prunus.Source(" in note and note in done.record.notes
    bare = compress(_Own(), steps[:1], data, latency=None)  # nothing was asked to be kept
    assert not any("no artifact" in note for note in bare.record.notes)
    assert done.record.source.model.endswith("_Own")
    assert done.record.data == "custom"


def test_a_damaged_record_is_made_anew_and_another_kind_of_folder_is_named(tmp_path: Path) -> None:
    where, network = tmp_path / "run", trained_cnn()
    first = compress(network, STEPS[:1], few_digits(), out=where, latency=None).record
    file = where / "record.json"
    file.write_text(file.read_text(encoding="utf-8")[:50], encoding="utf-8")
    again = compress(network, STEPS[:1], few_digits(), out=where, latency=None, resume=True).record
    assert (again.scores, again.widths, again.plans) == (first.scores, first.widths, first.plans)
    assert RunRecord.load(file) == again
    with pytest.raises(InputError, match="holds no comparison, but a run; name a new folder"):
        compare(network, ["l1"], few_digits(), "macs=0.5", out=where, latency=None, resume=True)


def test_fronts_of_several_searches_are_numbered() -> None:
    point = FrontPoint(macs=1, params=1, fitness=0.1, kl=0.1, loss=1, top1=0.5)
    outcomes: Any = [SimpleNamespace(front=front) for front in ((point, point), (), (point,))]
    assert [p.search for p in _fronts(outcomes)] == [0, 0, 1]


def test_a_network_trained_here_has_not_seen_the_search_split() -> None:
    first = TrainConfig(epochs=1, lr=0.1, batch_size=32, precision="float32", layout="contiguous")
    data = few_digits()
    done = compress("digits_cnn", STEPS[:1], data, train_first=first, latency=None)
    assert not done.record.search_seen_in_pretraining
    assert compress(
        trained_cnn(), STEPS[:1], few_digits(), latency=None
    ).record.search_seen_in_pretraining
    assert data.test.evaluations == 2


def test_a_zoo_network_gets_the_classes_of_the_data() -> None:
    first = TrainConfig(epochs=1, lr=0.1, precision="float32", layout="contiguous")
    done = compress("digits_cnn", STEPS[:1], few_digits(), train_first=first, latency=None)
    assert done.record.source.arguments == {"num_classes": 10}
    with pytest.raises(InputError, match="num_classes=10"):
        compress(
            Source(model="digits_cnn", arguments={"num_classes": 2}),
            STEPS,
            few_digits(),
            train_first=first,
        )


def _pairs() -> DataSplits:
    points = torch.randn(90, 6, generator=torch.Generator().manual_seed(0))
    labels = points[:, :3].argmax(1)
    return from_datasets(
        TensorDataset(points[:60], labels[:60]), TensorDataset(points[60:], labels[60:])
    )


def _zero_half(self: Method, context: Context) -> Decision:
    """All that reads units 0 to 7 of the first layer of ``_Own``, and no unit by choice."""
    keep = torch.ones(3, 16, dtype=torch.bool)
    keep[:, :8] = False
    bits = Bits.pack(keep.flatten().tolist())
    edit = ZeroConnections(tensor="second.weight", level="weight", shape=(3, 16), keep=bits)
    first = torch.arange(16).numpy() > 3
    return Decision(choice={"first": first}, connections=(edit,))


def test_units_that_nothing_reads_are_in_the_predicted_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(L1, "decide", _zero_half)
    done = compress(_Own(), [Prune(method="l1", target="params=0.8")], _pairs(), latency=None)
    # 4 units by choice, 4 more that nothing reads: 8 of 16 stay
    assert done.record.cost.params == 6 * 8 + 8 + 8 * 3 + 3


def _zero_some(self: Method, context: Context) -> Decision:
    bits = Bits.pack([i % 3 != 0 for i in range(48)])  # one of three in every column
    edit = ZeroConnections(tensor="second.weight", level="weight", shape=(3, 16), keep=bits)
    return Decision(choice={"first": torch.arange(16).numpy() > 3}, connections=(edit,))


@pytest.mark.parametrize("more", [[Recalibrate(images=16)], [Recalibrate(images=16), SHORT]])
def test_what_is_held_at_zero_stays_zero_in_the_users_own_training(
    more: list[Step], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(L1, "decide", _zero_some)
    steps = [Prune(method="l1", target="params=0.9"), *more]
    steps = [s.model_copy(update={"augment": False}) if isinstance(s, Train) else s for s in steps]
    dense = _Own()
    for resume in (False, True):
        network = compress(
            dense, steps, _pairs(), out=tmp_path / "run", resume=resume, latency=None
        ).network
        weight = network.get_parameter("second.weight")
        held = weight == 0
        assert held.any()
        network(torch.randn(5, 6)).square().sum().backward()
        assert weight.grad is not None
        assert not weight.grad[held].any()
        assert weight.grad[~held].any()


def test_a_method_that_reads_the_test_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data, honest = few_digits(), L1.decide

    def peek(self: L1, context: Context) -> Decision:
        evaluate(context.network, data.test)
        return honest(self, context)

    monkeypatch.setattr(L1, "decide", peek)
    with pytest.raises(PrunusError, match=r"steps\[0\]\.prune read the test split 2 times, 1 are"):
        compress(trained_cnn(), STEPS, data, latency=None)


def test_a_trained_network_that_is_trained_on_may_have_seen_the_search_split() -> None:
    first = TrainConfig(epochs=1, lr=0.1, batch_size=32, precision="float32", layout="contiguous")
    steps, given = STEPS[:1], trained_cnn()
    done = compress(given, steps, few_digits(), train_first=first, latency=None)
    assert done.record.search_seen_in_pretraining
    source = Source(model="digits_cnn")
    done = compress(given, steps, few_digits(), train_first=first, source=source, latency=None)
    assert done.record.search_seen_in_pretraining


def test_a_student_is_saved_though_nothing_says_how_its_teacher_is_built(tmp_path: Path) -> None:
    steps: list[Step] = [Student(model="digits_cnn", arguments={"width": 0.5}), SHORT]
    done = compress(trained_cnn(), steps, few_digits(), out=tmp_path / "run", latency=None)
    assert done.artifact_path == tmp_path / "run" / "artifact"
    assert same_state(load(done.artifact_path), done.network)
    assert not any("no artifact was saved" in note for note in done.record.notes)
    # Without a student there is nothing that could be loaded.
    alone = compress(trained_cnn(), [SHORT], few_digits(), out=tmp_path / "alone", latency=None)
    assert alone.artifact_path is None
    assert any("no artifact was saved" in note for note in alone.record.notes)


def test_a_student_has_seen_the_search_split_where_its_own_weights_have(tmp_path: Path) -> None:
    torch.save(trained_cnn().state_dict(), tmp_path / "w.pt")
    first = SHORT.config(fresh=False)
    fresh = Student(model="digits_cnn")
    given = Student(model="digits_cnn", weights=str(tmp_path / "w.pt"))
    file = tmp_path / "net.py"  # what it sets itself comes from nobody knows where
    file.write_text("from prunus.zoo import build\n\ndef make():\n    return build('digits_cnn')\n")
    factory = Student(model=f"{file}:make")
    for student, seen in ((fresh, False), (given, True), (factory, True)):
        for network in (trained_cnn(), "digits_cnn"):  # may have seen it, and has not
            drawn = first if network == "digits_cnn" else None
            steps: list[Step] = [student, SHORT]
            done = compress(network, steps, few_digits(), train_first=drawn, latency=None)
            assert done.record.search_seen_in_pretraining == seen


def test_latencies_are_measured_as_asked_for() -> None:
    threads = torch.get_num_threads() + 1
    asked = LatencyOptions(repeats=31, warmup=2, batch=3, threads=threads)
    record = compress(trained_cnn(), STEPS[:1], few_digits(), latency=asked).record
    for found in (record.dense_latency, record.latency):
        assert found is not None
        measured = (found.repeats, found.warmup, found.batch, found.threads)
        assert measured == (31, 2, 3, threads)


def test_a_wrong_source_ends_the_run_at_its_first_step(tmp_path: Path) -> None:
    class Squared(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            for name, child in inner.named_children():
                self.add_module(name, child)
            self._inner = [inner]

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self._inner[0](x)
            return out**2

    with pytest.raises(PlanMismatchError, match="'digits_cnn' builds another network"):
        train_network(
            Squared(build("digits_cnn")),
            SHORT.config(fresh=False),
            few_digits(),
            source=Source(model="digits_cnn"),
            out=tmp_path / "run",
        )
