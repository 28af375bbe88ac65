"""What the notes of a record say of its run."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunus.data import from_datasets
from prunus.method import Budget
from prunus.recipe import LatencyOptions, Prune, Recipe, Repeat, compress
from prunus.recipe.summarize import _chance_notes, _finds_classes, _waiting_notes
from prunus.records import AT_CHANCE, Environment, Latency, Score
from prunus.train import evaluate, evaluation_of
from prunus.zoo import build
from tests.recipe.subjects import STEPS, few_digits, trained_cnn


@pytest.mark.parametrize(
    ("waiting", "threads", "device", "noted"),
    [
        ("passive", 2, "cpu", True),
        ("active", 2, "cpu", False),
        (None, 2, "cpu", False),
        ("passive", 1, "cpu", False),
        ("passive", 2, "cuda:0", False),
    ],
)
def test_threads_that_sleep_between_operations_are_noted_beside_their_time(
    waiting: str | None, threads: int, device: str, noted: bool
) -> None:
    where = Environment.capture(threads).model_copy(update={"waiting": waiting})
    times = {"median_ms": 1.0, "p95_ms": 1.0, "iqr_ms": 0.0, "repeats": 30, "warmup": 1}
    latency = Latency(**times, batch=1, threads=threads, device=device, engine="torch")
    notes = _waiting_notes(where, latency)
    assert bool(notes) is noted
    assert all("OMP_WAIT_POLICY=PASSIVE" in note and "unset it" in note for note in notes)
    assert not _waiting_notes(where, None)


def test_a_run_whose_threads_sleep_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    options = LatencyOptions(repeats=30, warmup=1, threads=2)
    record = compress(trained_cnn(), STEPS[:1], few_digits(), latency=options).record
    assert sum("OMP_WAIT_POLICY" in note for note in record.notes) == 1
    assert record.environment.waiting == "passive"


def test_a_dense_network_that_only_guesses_is_noted() -> None:
    fresh = build("digits_cnn")  # no training, no weights
    noted = compress(fresh, STEPS[:1], few_digits(), latency=None).record.notes
    assert any(note.startswith(AT_CHANCE) and "--train-epochs" in note for note in noted)
    noted = compress(trained_cnn(), STEPS[:1], few_digits(), latency=None).record.notes
    assert not any(note.startswith(AT_CHANCE) for note in noted)


@pytest.mark.parametrize(
    ("counts", "found", "finds"),
    [
        # 9 of 10 found beside 12 wrong calls: top-1 0.87, under 0.9.
        ([90, 10], {"f1": 0.58}, True),
        ([90, 10], {"f1": 0.18}, False),  # always naming class 1: 2 * 0.1 / 1.1
        ([50, 50], {"f1": 0.60}, False),  # the same: 2 / 3
        ([90, 5, 5], {"recall": 0.7}, True),
        ([90, 5, 5, 0], {"recall": 0.6}, False),  # a class without samples counts for nothing
        ([90, 10], {}, False),
    ],
)
def test_a_network_that_finds_the_rare_class_does_not_guess(
    counts: list[int], found: dict[str, float], finds: bool
) -> None:
    split = {"metric": "top1", "value": 0.87, "top1": 0.87, "stage": "dense", "split": "test"}
    score = Score.model_validate({**split, "samples": 100, **found})
    assert _finds_classes(score, torch.tensor(counts)) == finds


def test_rare_classes_are_looked_at_where_the_frequent_one_hides_them() -> None:
    """9 of 10 of class 1 found beside 12 wrong calls, by the meter's own count."""
    labels = torch.tensor([1] * 10 + [0] * 90)
    called = torch.tensor([1] * 9 + [0] + [1] * 12 + [0] * 78)
    seen = evaluation_of(torch.nn.functional.one_hot(called, 2).float(), labels)
    assert seen.top1 == pytest.approx(0.87) and seen.f1 == pytest.approx(18 / 31)
    inputs = torch.zeros(100, 3)
    data = from_datasets(TensorDataset(inputs, labels), TensorDataset(inputs, labels))
    score = {"metric": "top1", "value": 0.87, "samples": 100, "stage": "dense", "split": "test"}
    found = {"top1": seen.top1, "f1": seen.f1, "recall": seen.recall}
    assert _chance_notes(Score.model_validate(score | found), data) == []
    (note,) = _chance_notes(Score.model_validate(score | found | {"f1": 0.1}), data)
    assert note.startswith(AT_CHANCE) and "90.00%" in note


def test_looks_before_the_run_are_noted() -> None:
    data = few_digits()
    for _ in range(2):
        evaluate(trained_cnn(), data.test)
    record = compress(trained_cnn(), STEPS[:1], data, latency=None).record
    assert "the test split had been evaluated 2 times before this run" in record.notes
    assert record.test_evaluations == {"dense": 1, "after_cut": 1}


@pytest.mark.parametrize("target", ["macs=1", "params=100000000"])
def test_a_target_that_asks_for_nothing_is_noted_alone(target: str) -> None:
    """Not beside a word on what is left of it, as if a step of a cut were too large for that."""
    steps = [Prune(method="l1", target=target)]
    record = compress(trained_cnn(), steps, few_digits(), latency=None).record
    assert record.cost.macs == record.dense_cost.macs
    said = f"steps[0].prune: target {target} is met as it is: nothing was cut"
    assert [note for note in record.notes if "prune" in note] == [said]


def test_a_target_that_connections_alone_are_cut_for_is_met_as_it_is() -> None:
    """Of a limit above what the network has, not a word on what is left of it."""
    options = {"population": 4, "parents": 2, "generations": 0, "images": 64, "connections": 0.9}
    step = Prune(method="genetic", target="macs=100000000", options=options)
    record = compress(trained_cnn(), [step], few_digits(), latency=None).record
    assert record.cost.macs == record.dense_cost.macs
    assert record.cost.effective_macs < record.dense_cost.effective_macs
    met = (
        "steps[0].prune: target macs=100000000 is met as it is: no unit was cut, connections alone"
    )
    notes = [note for note in record.notes if "target" in note or "used" in note]
    assert notes == [f"{met} are zero"]


def test_a_round_that_asks_for_nothing_is_noted_as_a_round() -> None:
    """Its target is that of the last one, which is not met yet."""
    rounds = Repeat(times=2, schedule=(0.9, 0.5), steps=(Prune(method="l1", target="macs=0.5"),))
    first = Prune(method="l1", target="macs=0.6")
    record = compress(trained_cnn(), [first, rounds], few_digits(), latency=None).record
    (note,) = [note for note in record.notes if "met as it is" in note]
    assert note.endswith(
        "what round 1 of 2 leaves of target macs=0.5 is met as it is: nothing was cut"
    )
    assert record.cost.macs <= 0.5 * record.dense_cost.macs


@pytest.mark.parametrize(("round_to", "noted"), [(8, True), (1, False)])
def test_a_budget_that_is_far_from_used_is_noted(round_to: int, noted: bool) -> None:
    step = Prune(method="l1", target="params=0.7")
    done = compress(
        trained_cnn(), Recipe(steps=(step,), round_to=round_to), few_digits(), latency=None
    )
    notes = [note for note in done.record.notes if "are used" in note]
    assert bool(notes) is noted
    cost, limit = done.record.cost.params, Budget.parse("params=0.7").limit(12_170)
    assert done.record.dense_cost.params == 12_170
    said = f"steps[0].prune: {cost} of {limit} params are used ({cost / limit:.1%}): a step of what"
    assert all(note.startswith(said) for note in notes)
    assert (cost < 0.95 * limit) is noted
    assert all("steps are finer with a smaller round_to" in note for note in notes)


def test_a_smaller_round_to_is_no_way_where_there_is_none() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    done = compress(network, [Prune(method="l1", target="macs=0.7")], few_digits(), latency=None)
    (note,) = (note for note in done.record.notes if "are used" in note)
    assert note.endswith("more than what is left; other methods cut other groups")


def test_a_budget_that_lacks_connections_to_be_used_is_told_once() -> None:
    """By the method, which knows why: a step more would fit."""
    options = {"population": 4, "parents": 2, "generations": 0, "images": 32, "connections": 0.02}
    step = Prune(method="genetic", target="macs=0.9", options=options)
    done = compress(trained_cnn(), [step], few_digits(), latency=None)
    (note,) = (note for note in done.record.notes if "are used" in note)
    assert note.startswith("genetic: ") and "raise connections=0.02" in note


def test_a_sample_that_is_not_finite_is_noted() -> None:
    train, test = (
        (torch.rand(60, 1, 8, 8), torch.arange(60) % 3),
        (torch.rand(9, 1, 8, 8), torch.arange(9) % 3),
    )
    test[0][4, 0, 0, 0] = float("nan")
    data = from_datasets(TensorDataset(*train), TensorDataset(*test))
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    steps = [Prune(method="l1", target="macs=0.7")]
    notes = compress(network, steps, data, latency=None).record.notes
    assert any("loss on the test split is nan" in note for note in notes)
