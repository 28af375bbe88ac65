"""Trainings that the command line makes of what is given, and of what is not."""

import pytest

from prunus.cli.given import Subject, Training
from prunus.cli.training import make_finetune, make_train_first, make_training

IMAGES = Subject("digits_cnn", (), None, "digits")
TEXTS = Subject("bert_tiny", (), None, "text:reviews.csv")
LOADED = Subject("hf:somebody/bert", ("task=text",), None, "text:reviews.csv")


def asked(optimizer: str | None, lr: float | None = None) -> Training:
    return Training(1, lr, None, 0.0, 1, lr, None, optimizer)


@pytest.mark.parametrize(
    ("subject", "optimizer", "after", "first", "scratch"),
    [
        (IMAGES, None, 0.02, 0.1, 0.1),  # sgd
        (IMAGES, "sgd", 0.02, 0.1, 0.1),
        (IMAGES, "adamw", 5e-4, 2e-3, 2e-3),
        (TEXTS, None, 1e-4, 5e-4, 5e-4),  # adamw
        (TEXTS, "adamw", 1e-4, 5e-4, 5e-4),
        (TEXTS, "sgd", 0.02, 0.1, 0.1),
        (LOADED, None, 1e-4, 5e-5, 5e-4),  # method scratch has fresh weights all the same
        (LOADED, "sgd", 0.02, 0.01, 0.1),
    ],
)
def test_learning_rates_that_are_not_given_are_those_of_the_optimizer(
    subject: Subject, optimizer: str | None, after: float, first: float, scratch: float
) -> None:
    training = asked(optimizer)
    step = make_finetune(training, text=subject is not IMAGES)
    assert step.lr == after
    before = make_train_first(training, subject)
    assert before is not None
    assert before.lr == make_training(training, subject).lr == first
    assert step.scratch_lr == scratch
    assert step.optimizer == before.optimizer == (optimizer or step.optimizer)


def test_a_learning_rate_that_is_given_is_kept() -> None:
    for optimizer in (None, "adamw"):
        training = asked(optimizer, lr=0.3)
        step, before = make_finetune(training, text=False), make_train_first(training, IMAGES)
        assert before is not None
        assert (step.lr, step.scratch_lr, before.lr) == (0.3, 0.3, 0.3)
