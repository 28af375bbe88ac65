"""Trainings that the command line makes of what is given, and of what is not."""

from pathlib import Path
from typing import Any

import pytest

from prunus.cli.given import Training
from prunus.cli.training import make_finetune, make_train_first, make_training
from prunus.errors import InputError
from prunus.recipe import Prune
from prunus.records import Source
from tests.cli.runner import ends

IMAGES = Source(model="digits_cnn")
TEXTS = Source(model="bert_tiny")
LOADED = Source(model="hf:somebody/bert", arguments={"task": "text"})
OWN = Source(model="nets.py:build")  # its data tells what it reads
REVIEWS = "text:reviews.csv"


def asked(optimizer: str | None, lr: float | None = None) -> Training:
    return Training(1, lr, None, None, 1, lr, None, optimizer)


@pytest.mark.parametrize(
    ("source", "optimizer", "after", "first", "scratch"),
    [
        (IMAGES, None, 0.02, 0.1, 0.1),  # sgd
        (IMAGES, "sgd", 0.02, 0.1, 0.1),
        (IMAGES, "adamw", 5e-4, 2e-3, 2e-3),
        (TEXTS, None, 1e-4, 5e-4, 5e-4),  # adamw
        (TEXTS, "adamw", 1e-4, 5e-4, 5e-4),
        (TEXTS, "sgd", 0.02, 0.1, 0.1),
        (LOADED, None, 1e-4, 5e-5, 5e-4),  # method scratch has fresh weights all the same
        (LOADED, "sgd", 0.02, 0.01, 0.1),
        (OWN, None, 1e-4, 5e-4, 5e-4),
    ],
)
def test_learning_rates_that_are_not_given_are_those_of_the_optimizer(
    source: Source, optimizer: str | None, after: float, first: float, scratch: float
) -> None:
    training = asked(optimizer)
    data = "digits" if source is IMAGES else REVIEWS
    step = make_finetune(training, text=source is not IMAGES)
    assert step.lr == after
    before = make_train_first(training, source, data)
    assert before is not None
    assert before.lr == make_training(training, source, data).lr == first
    assert step.scratch_lr == scratch
    assert step.optimizer == before.optimizer == (optimizer or step.optimizer)


def test_a_learning_rate_that_is_given_is_kept() -> None:
    for optimizer in (None, "adamw"):
        training = asked(optimizer, lr=0.3)
        step = make_finetune(training, text=False)
        before = make_train_first(training, IMAGES, "digits")
        assert before is not None
        assert (step.lr, step.scratch_lr, before.lr) == (0.3, 0.3, 0.3)


def test_an_own_network_on_images_is_trained_as_others_on_images() -> None:
    before = make_train_first(asked(None), OWN, "imagefolder:photos")
    assert before is not None
    assert (before.optimizer, before.lr, before.augment) == ("sgd", 0.1, True)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the commands ask for: the recipe or the steps of each row, and the training before."""
    seen: list[Any] = []

    def stop(_network: Any, asked: Any, *_: Any, **others: Any) -> None:
        seen.extend([asked, others["train_first"]])
        raise InputError("seen enough")

    for command in ("compress", "compare"):
        monkeypatch.setattr(f"prunus.cli.work.{command}", stop)
    return seen


@pytest.mark.parametrize(
    ("says", "given"),
    [
        ("model: bert_tiny\ndata: text:a.csv\n", []),
        ("data: text:a.csv\n", ["--model", "nets.py:build"]),
        ("model: nets.py:build\n", ["--data", "text:a.csv"]),
        # In the place of the recipe's.
        ("model: digits_cnn\ndata: digits\n", ["--model", "bert_tiny", "--data", "text:a.csv"]),
    ],
)
def test_the_network_of_a_recipe_decides_how_it_is_trained_first(
    tmp_path: Path, called: list[Any], says: str, given: list[str]
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(says + "steps: [{prune: {method: l1, target: macs=0.6}}]\n", encoding="utf-8")
    ends(["compress", "--recipe", str(file), *given, "--train-epochs", "2"], "seen enough")
    _, first = called
    assert (first.optimizer, first.lr, first.schedule) == ("adamw", 5e-4, "linear")
    assert (first.grad_clip, first.augment) == (1, False)


def test_a_pretrained_network_of_a_recipe_is_trained_on_slowly(
    tmp_path: Path, called: list[Any]
) -> None:
    file, steps = tmp_path / "r.yaml", "steps: [{prune: {method: l1, target: macs=0.6}}]\n"
    says = "model: hf:somebody/bert\narguments: {task: text}\ndata: text:a.csv\n"
    file.write_text(says + steps, encoding="utf-8")
    ends(["compress", "--recipe", str(file), "--train-epochs", "2"], "seen enough")
    assert called[1].lr == 5e-5


@pytest.mark.parametrize("command", ["compress", "compare"])
def test_an_own_network_on_texts_is_cut_and_trained_as_those_of_the_zoo(
    called: list[Any], command: str
) -> None:
    """Nothing is recalibrated: networks that read texts have no statistics of batches."""
    given = [command, "--model", "nets.py:build", "--data", "text:a.csv", "--method", "l1"]
    ends([*given, "--target", "macs=0.6", "--epochs", "1", "--train-epochs", "2"], "seen enough")
    asked, first = called
    cut, after = asked.steps if command == "compress" else asked["l1"]
    assert isinstance(cut, Prune)
    assert (after.optimizer, after.lr, after.schedule) == ("adamw", 1e-4, "linear")
    assert (first.optimizer, first.lr, first.schedule) == ("adamw", 5e-4, "linear")
