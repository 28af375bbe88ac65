"""Networks, images and plans that tests of the candidates share."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunus.candidates.scorer import Images
from prunus.data import Inputs, SearchSplit, TrainSplit
from prunus.data.splits import Samples
from prunus.data.stores import SampleStore
from prunus.graph import Trace
from prunus.graph.inputs import call, output_tensors
from prunus.plan import Bits, BoolArray, Plan, ZeroConnections
from prunus.train.forward import logits_of
from tests.helpers import images, random_choice

Level = Literal["kernel", "weight"]


class Held(SampleStore):
    """Samples in memory, exactly as they are given."""

    def __init__(self, inputs: Inputs, labels: Tensor) -> None:
        self._inputs, self._labels = inputs, labels

    @property
    def labels(self) -> Tensor:
        return self._labels

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self._inputs.shape[1:]) if isinstance(self._inputs, Tensor) else ()

    def read(self, indices: Tensor, augment: torch.Generator | None) -> tuple[Inputs, Tensor]:
        if isinstance(self._inputs, Tensor):
            return self._inputs[indices], self._labels[indices]
        return {n: t[indices] for n, t in self._inputs.items()}, self._labels[indices]


def samples(inputs: Inputs, classes: int, seed: int = 0) -> Samples:
    """Samples with random labels."""
    first = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    labels = torch.randint(
        classes, (len(first),), generator=torch.Generator().manual_seed(seed), dtype=torch.int64
    )
    return Samples("held", Held(inputs, labels), torch.arange(len(first)), classes)


def search_split(inputs: Inputs, classes: int) -> SearchSplit:
    return SearchSplit(samples(inputs, classes, 1))


def train_split(inputs: Inputs, classes: int) -> TrainSplit:
    return TrainSplit(samples(inputs, classes, 2))


def gather(
    network: nn.Module,
    search: SearchSplit,
    train: TrainSplit,
    calibration: int = 128,
    seed: int = 0,
) -> Images:
    """Images of the two splits: calibration batches are those of ``recalibrate_batch_norm_``."""
    (inputs, labels), *_ = search.batches(len(search))
    generator = torch.Generator().manual_seed(seed)
    size = min(64, calibration)
    batches = [batch for batch, _ in train.batches(size, generator=generator)]
    return Images(
        search=inputs,
        labels=labels,
        reference=logits_of(call(network, inputs)).float(),
        difficulty=torch.arange(len(labels), dtype=torch.float64),
        calibration=tuple(batches[: calibration // size]),
    )


def small_images(
    network: nn.Module, shape: Sequence[int], count: int = 128, classes: int = 10
) -> Images:
    """Normal values as images, with random labels."""
    search = search_split(images(count, *shape, seed=1), classes)
    return gather(network, search, train_split(images(64, *shape, seed=2), classes), 64)


def forward(network: nn.Module, inputs: Any) -> list[Tensor]:
    """All that a network returns."""
    return output_tensors(call(network, inputs))


def same_bits(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def bits_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors of a network, masks of held connections among them."""
    return {
        n: t.detach().clone() for n, t in [*network.named_parameters(), *network.named_buffers()]
    }


def unchanged(network: nn.Module, before: dict[str, Tensor]) -> bool:
    now = dict([*network.named_parameters(), *network.named_buffers()])
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in now)


def flags(*shape: int, seed: int = 0, share: float = 0.6) -> BoolArray:
    """Some kept, and something of every row and column: no unit is left unread."""
    keep = np.random.default_rng(seed).random(shape) < share
    for k in range(max(shape[:2])):
        keep[k % shape[0], k % shape[1]] = True
    return keep


def zero(tensor: str, keep: BoolArray, level: Level = "kernel") -> ZeroConnections:
    return ZeroConnections(tensor=tensor, level=level, shape=keep.shape, keep=Bits.pack(keep))


def random_plan(trace: Trace, seed: int, share: float = 0.6) -> Plan:
    return trace.plan(random_choice(trace, seed, share))


def some_plans(trace: Trace, count: int, groups: int = 3) -> list[Plan]:
    """Random plans of few groups each, so that many agree in their first layers."""
    plans = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        choice = random_choice(trace, seed)
        names = rng.choice(sorted(choice), size=min(groups, len(choice)), replace=False)
        plans.append(trace.plan({name: choice[name] for name in names}))
    return plans


def inner(network: nn.Module, path: str) -> Any:
    """A module by its path, of whatever class."""
    return network.get_submodule(path)


def share_weight_(network: nn.Module, path: str, other: str) -> None:
    """Tie the weight of one layer to another's."""
    inner(network, path).weight = inner(network, other).weight
