"""A small trained network on few digits, and progress that kills a run at a chosen moment."""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from prunus.data import DataSplits, load_data
from prunus.recipe import LatencyOptions, Prune, Recalibrate, Step, Train
from prunus.train import TrainConfig, fit
from prunus.zoo import build

FAST = LatencyOptions(repeats=30, warmup=1)
SHORT = Train(epochs=1, lr=0.02, batch_size=32, precision="float32", layout="contiguous")
STEPS: tuple[Step, ...] = (
    Prune(method="l1", target="macs=0.5"),
    Recalibrate(images=64),
    Train(epochs=3, lr=0.02, batch_size=32, precision="float32", layout="contiguous"),
)


def few_digits() -> DataSplits:
    """A fresh count of looks at the test split with every call."""
    data = load_data("digits")
    return replace(
        data,
        train=data.train.subset(256, 0),
        search=data.search.subset(64, 0),
        test=data.test.subset(64, 0),
    )


@cache
def _trained() -> dict[str, Tensor]:
    network, data = build("digits_cnn"), few_digits()
    config = TrainConfig(epochs=6, lr=0.1, batch_size=32, precision="float32", layout="contiguous")
    fit(network, data.train, data.search, config, seed=0)
    return network.state_dict()


def trained_cnn() -> nn.Module:
    """A network of its own with every call."""
    network = build("digits_cnn")
    network.load_state_dict(_trained())
    return network.eval()


def same_state(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks agree in every bit of their state."""
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


class Killed(BaseException):
    """What a kill does to the process, for a test: no handler of errors sees it."""


class Killer:
    """Progress that dies at an advance of a phase, and notes the phases it has seen."""

    def __init__(self, phase: str = "", advance: int = 1) -> None:
        self.phases: list[str] = []
        self._phase = phase
        self._left = advance
        self._stack: list[str] = []

    def start(self, phase: str, total: int) -> None:
        self.phases.append(phase)
        self._stack.append(phase)

    def advance(self, n: int = 1, **values: float) -> None:
        if self._stack and self._stack[-1] == self._phase:
            self._left -= n
            if self._left <= 0:
                raise Killed

    def finish(self) -> None:
        self._stack.pop()
