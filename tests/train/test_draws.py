"""A training whose network draws from the global generators of Python and NumPy."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.train import FitResult, TrainConfig, fit
from prunus.train.precision import choose_execution
from tests.train.fakes import (
    Steps,
    same_state,
    search_digits,
    settings,
    small_cnn,
    train_digits,
)


class Draws(nn.Module):
    """Scales and shifts its input by what Python and NumPy draw, in training and evaluation alike."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_cnn(dropout=0.3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x * (0.5 + random.random()) + np.random.rand())  # noqa: NPY002
        return out


def trained(network: nn.Module, seed: int, path: Path | None = None) -> FitResult:
    """Three epochs of three steps."""
    train, search = train_digits(0, 96), search_digits(96, 128)
    return fit(network, train, search, settings(epochs=3), seed=seed, checkpoint=path)


def test_the_seed_decides_what_a_network_draws() -> None:
    one, two, other = Draws(), Draws(), Draws()
    first = trained(one, 3)
    _ = random.random(), np.random.rand()  # noqa: NPY002  # the global states do not matter
    second = trained(two, 3)
    trained(other, 4)
    assert same_state(two, one)
    assert [p.values for p in second.history] == [p.values for p in first.history]
    assert not same_state(other, one)


def test_a_resumed_training_draws_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    straight, killed, resumed = Draws(), Draws(), Draws()
    whole = trained(straight, 3)
    train, search = train_digits(0, 96), search_digits(96, 128)
    path, steps = tmp_path / "training.pt", Steps(stop_at=3 + 2)  # in the second epoch
    with pytest.raises(KeyboardInterrupt):
        fit(killed, train, search, settings(epochs=3), seed=3, checkpoint=path, progress=steps)
    _ = random.random(), np.random.rand()  # noqa: NPY002
    result = trained(resumed, 3, path)
    assert same_state(resumed, straight)
    assert [p.values for p in result.history] == [p.values for p in whole.history]


def drawn_next() -> tuple[float, float, float]:
    """Python, NumPy and torch."""
    return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002


def seed_all() -> None:
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)


def test_the_global_states_are_given_back() -> None:
    seed_all()
    expected = drawn_next()
    seed_all()
    trained(Draws(), 0)
    assert drawn_next() == expected


def test_a_trial_of_formats_gives_the_global_states_back() -> None:
    sample = next(iter(train_digits(0, 8).batches(8)))
    config = TrainConfig(epochs=1, lr=0.1, batch_size=8, precision="float32")  # layouts are tried
    seed_all()
    expected = drawn_next()
    seed_all()
    choose_execution(Draws(), sample, config, torch.device("cpu"))
    assert drawn_next() == expected
