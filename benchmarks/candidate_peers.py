"""How others score a candidate: physical pruning of a copy, the same in bfloat16, masking hooks.

Each peer returns what our engine returns (KL, loss and hit of every image) for the same images, the
same channels and the same 256 images of batch-norm recalibration, so that only the way differs. Dense
logits and batches are made once, before any clock runs. Threads are the caller's.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch_pruning as tp
from candidate_plans import Subject
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.data import Split
from prunus.graph import Choice, Group, cut
from prunus.plan import BoolArray
from prunus.train import recalibrate_batch_norm_

FloatArray = npt.NDArray[np.float32]

BATCH = 128
RECALIBRATION: dict[str, Any] = {"images": 256, "batch_size": 64, "seed": 0}
TOLERANCE = 1e-4  # of outputs of two ways to make one network
NOTES = {
    "tp-float32": "deep copy, DependencyGraph and groups by torch-pruning per candidate; "
    "on resnet56 the residual stream stays whole (option A), so nothing of it is replaced or ignored",
    "tp-bfloat16": "as tp-float32; recalibration and evaluation in autocast, channels_last",
    "masks": "one dense network, hooks on every batch norm of a group zero what is cut, in place",
}


@dataclass(frozen=True, eq=False)
class PeerScore:
    """One candidate: ``kl``, ``loss`` (nats) and ``correct`` by image, and where the time went."""

    kl: FloatArray
    loss: FloatArray
    correct: BoolArray
    prune_seconds: float
    recalibrate_seconds: float
    evaluate_seconds: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.prune_seconds + self.recalibrate_seconds + self.evaluate_seconds

    @property
    def means(self) -> dict[str, float]:
        """Mean KL and loss in nats, and top-1 in [0, 1]."""
        columns = {"kl": self.kl, "loss": self.loss, "top1": self.correct}
        return {name: round(float(c.mean(dtype=np.float64)), 6) for name, c in columns.items()}


class Judge:
    """Images in batches, and what the dense network says of them in float32."""

    def __init__(self, dense: nn.Module, split: Split) -> None:
        self.batches = list(images(split, BATCH))
        with torch.inference_mode():
            self.dense = [F.log_softmax(dense(x).double(), dim=1) for x, _ in self.batches]

    def score(
        self, network: nn.Module, *, layout: torch.memory_format = torch.contiguous_format
    ) -> tuple[FloatArray, FloatArray, BoolArray]:
        """KL(dense || network), loss and hit of every image."""
        network.eval()
        kl, loss, correct = [], [], []
        with torch.inference_mode():
            for (inputs, labels), dense in zip(self.batches, self.dense, strict=True):
                logits = network(inputs.contiguous(memory_format=layout))
                mine = F.log_softmax(logits.double(), dim=1)
                kl.append((dense.exp() * (dense - mine)).sum(dim=1))
                loss.append(F.nll_loss(mine, labels, reduction="none"))
                correct.append(mine.argmax(dim=1) == labels)
        return (
            torch.cat(kl).float().numpy(),
            torch.cat(loss).float().numpy(),
            torch.cat(correct).numpy(),
        )


def score_pruned(subject: Subject, judge: Judge, choices: Sequence[Choice]) -> list[PeerScore]:
    """Peer (a): every candidate a pruned copy, evaluated in float32, NCHW."""
    return [_timed(partial(prune_copy, subject, c), subject, judge) for c in choices]


def score_bfloat16(subject: Subject, judge: Judge, choices: Sequence[Choice]) -> list[PeerScore]:
    """Peer (b): as (a), recalibrated and evaluated in bfloat16 autocast and ``channels_last``."""

    def made(choice: Choice) -> nn.Module:
        network = prune_copy(subject, choice)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs
        return network

    return [_timed(partial(made, c), subject, judge, bfloat16=True) for c in choices]


def score_masked(subject: Subject, judge: Judge, choices: Sequence[Choice]) -> list[PeerScore]:
    """Peer (c): the dense network under masking hooks, float32, NCHW; nothing gets smaller."""
    network = copy.deepcopy(subject.network)  # its statistics change with every candidate
    scores = []
    for choice in choices:
        with masking(network, subject, choice) as seconds:
            scores.append(_timed(lambda: network, subject, judge, made_seconds=seconds))
    return scores


Peer = Callable[[Subject, Judge, Sequence[Choice]], list[PeerScore]]
PEERS: Mapping[str, Peer] = {
    "tp-float32": score_pruned,
    "tp-bfloat16": score_bfloat16,
    "masks": score_masked,
}


def images(split: Split, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of images, as tensors."""
    for inputs, labels in split.batches(batch_size):
        if not isinstance(inputs, torch.Tensor):
            raise TypeError("the data set does not hold images")
        yield inputs, labels


def prune_copy(subject: Subject, choice: Choice) -> nn.Module:
    """A copy of the dense network without the channels of ``choice``, by torch-pruning."""
    network = copy.deepcopy(subject.network)
    example = torch.zeros(1, *subject.data.input_shape)
    graph = tp.DependencyGraph().build_dependency(network, example_inputs=example)
    for name, keep in choice.items():
        if keep.all():
            continue
        root, removed = _root(network, subject.trace.by_name[name], keep)
        group = graph.get_pruning_group(root, tp.prune_conv_out_channels, idxs=removed)
        if not graph.check_pruning_group(group):
            raise RuntimeError(f"torch-pruning would remove all channels of '{name}'")
        group.prune()
    return network


@contextmanager
def masking(network: nn.Module, subject: Subject, choice: Choice) -> Iterator[float]:
    """Keep the channels that ``choice`` removes at zero; yields the seconds that took to set up.

    A hook on every batch norm of a group zeros its output. ReLU, max pooling and the sum of a
    residual stream keep zeros, so the next layer sees zeros as it would behind the ReLU.
    """
    started = time.perf_counter()
    handles = []
    for name, keep in choice.items():
        if keep.all():
            continue
        for norm, units in _norms(network, subject.trace.by_name[name]):
            mask = torch.from_numpy(keep[units].astype(np.float32)).reshape(1, -1, 1, 1)
            # In place: the least that a user of masks can pay.
            handles.append(norm.register_forward_hook(lambda _m, _i, out, k=mask: out.mul_(k)))
    try:
        yield time.perf_counter() - started
    finally:
        for handle in handles:
            handle.remove()


def check_peers(subject: Subject, choice: Choice) -> None:
    """Make sure that peers and ``cut`` score one network: same parameters, same outputs.

    Batch-norm statistics are measured anew in each, as in a score.

    Raises:
        RuntimeError: They differ.
    """
    inputs, _ = next(images(subject.data.search, 64))
    ours = cut(subject.network, subject.trace.plan(choice))
    pruned = prune_copy(subject, choice)
    mine, theirs = (dict(m.named_parameters()) for m in (ours, pruned))
    if mine.keys() != theirs.keys() or not all(torch.equal(mine[n], theirs[n]) for n in mine):
        raise RuntimeError("torch-pruning and cut keep different parameters")
    expected = _recalibrated_outputs(ours, subject, inputs)
    outputs = {"torch-pruning": _recalibrated_outputs(pruned, subject, inputs)}
    masked = copy.deepcopy(subject.network)
    with masking(masked, subject, choice):
        outputs["masks"] = _recalibrated_outputs(masked, subject, inputs)
    for peer, found in outputs.items():
        difference = float((found - expected).abs().max() / expected.abs().max())
        if not difference <= TOLERANCE:
            raise RuntimeError(f"outputs of {peer} and of cut differ by {difference:.1e}")


def _recalibrated_outputs(
    network: nn.Module, subject: Subject, inputs: torch.Tensor
) -> torch.Tensor:
    recalibrate_batch_norm_(network, subject.data.train, **RECALIBRATION)
    with torch.inference_mode():
        outputs: torch.Tensor = network.eval()(inputs)
    return outputs


def _timed(
    make: Callable[[], nn.Module],
    subject: Subject,
    judge: Judge,
    *,
    bfloat16: bool = False,
    made_seconds: float = 0.0,
) -> PeerScore:
    # Autocast keeps casts of weights until it ends: it must not outlive the candidate.
    precision: AbstractContextManager[object] = nullcontext()
    layout = torch.contiguous_format
    if bfloat16:
        precision, layout = torch.autocast("cpu", dtype=torch.bfloat16), torch.channels_last
    clock = [time.perf_counter()]
    network = make()
    clock.append(time.perf_counter())
    with precision:
        recalibrate_batch_norm_(network, subject.data.train, **RECALIBRATION)
        clock.append(time.perf_counter())
        kl, loss, correct = judge.score(network, layout=layout)
        clock.append(time.perf_counter())
    prune, recalibrate, evaluate = np.diff(clock).tolist()
    return PeerScore(kl, loss, correct, prune + made_seconds, recalibrate, evaluate)


def _root(network: nn.Module, group: Group, keep: BoolArray) -> tuple[nn.Module, list[int]]:
    """The first convolution that produces the group's channels, and its filters to remove."""
    for axis in group.axes:
        module = network.get_submodule(axis.tensor.rpartition(".")[0])
        if axis.role == "out" and isinstance(module, nn.Conv2d):
            gone = (axis.units >= 0) & ~keep[axis.units]
            return module, np.flatnonzero(gone).tolist()
    raise RuntimeError(f"no convolution produces group '{group.name}'")


def _norms(network: nn.Module, group: Group) -> list[tuple[nn.Module, npt.NDArray[np.int64]]]:
    """The batch norms of a group, and the unit of each of their channels."""
    found: list[tuple[nn.Module, npt.NDArray[np.int64]]] = []
    for axis in group.axes:
        module = network.get_submodule(axis.tensor.rpartition(".")[0])
        if axis.tensor.endswith(".weight") and isinstance(module, _BatchNorm):
            if (axis.units < 0).any():
                raise RuntimeError(f"'{axis.tensor}' serves more than group '{group.name}'")
            found.append((module, axis.units))
    if not found:
        raise RuntimeError(f"group '{group.name}' has no batch norm to mask behind")
    return found
