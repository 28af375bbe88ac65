"""Students, teachers and samples of trainings that distil."""

import torch
from torch import Tensor, nn

from prunus.data import SearchSplit, TrainSplit, UnlabeledSplit
from prunus.train import Execution, TrainConfig
from prunus.train.teacher import Teaching
from tests.train.fakes import (
    TEXT_SAMPLE,
    samples,
    settings,
    texts,
)

CPU = torch.device("cpu")
PLAIN = Execution("float32", "contiguous")
PROBED = 2
"""Samples on which student and teacher are compared before the training."""


def taught(**changes: object) -> TrainConfig:
    return settings(**{"distill_alpha": 0.5, "augment": False, "epochs": 3, **changes})


def points(count: int, seed: int, labels: Tensor | None = None, classes: int = 2) -> TrainSplit:
    """Samples of 20 features; whether the sum of the first three is positive is the class."""
    values = torch.randn(count, 20, generator=torch.Generator().manual_seed(seed))
    if labels is None:
        labels = (values[:, :3].sum(1) > 0).long()
    return TrainSplit(samples(values, labels, num_classes=classes))


def unlabeled(count: int, seed: int) -> UnlabeledSplit:
    return UnlabeledSplit(points(count, seed, torch.full((count,), -1)).samples)


def searched(count: int, seed: int) -> SearchSplit:
    return SearchSplit(points(count, seed).samples)


def mlp(seed: int, classes: int = 2) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, classes))


def sure_teacher() -> nn.Linear:
    """Knows the rule of ``points``."""
    teacher = nn.Linear(20, 2)
    with torch.no_grad():
        teacher.bias.zero_()
        teacher.weight.zero_()
        teacher.weight[1, :3] = 3
        teacher.weight[0, :3] = -3
    return teacher


class Asked(nn.Module):
    """Keeps what it is asked, in the order of the questions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.rows: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows += list(x)
        out: Tensor = self.network(x)
        return out


def teaching(student: nn.Module, teacher: nn.Module, config: TrainConfig) -> Teaching:
    """Ready to be asked for a loss, on texts where there are layers."""
    found = Teaching(student, teacher.eval(), config, PLAIN, CPU)
    sample = TEXT_SAMPLE if config.teaches_layers else torch.zeros(2, 20)
    found.prepare(sample, [], seed=0)
    return found


def layered_splits() -> tuple[TrainSplit, SearchSplit, UnlabeledSplit]:
    none = torch.full((40,), -1)
    return (
        TrainSplit(texts(70, seed=0)),
        SearchSplit(texts(40, seed=1)),
        UnlabeledSplit(texts(40, seed=2, labels=none)),
    )
