"""Score one candidate on some images: slice, recalibrate, fold, run, compare with the dense network."""

import math
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from prunus.candidates.draws import Draws
from prunus.candidates.execution import ScoringExecution
from prunus.candidates.fold import find_pairs, fold_
from prunus.candidates.int8 import Int8Layers
from prunus.candidates.int8_find import find_int8, require_int8
from prunus.candidates.kernels import convert_, converted_layers, find_rectified, rectify_
from prunus.candidates.numbers import may_break
from prunus.candidates.prefix import LEAST_WORK, Passed, Prefix
from prunus.candidates.prefix_cache import PrefixCache
from prunus.candidates.skeleton import Skeleton
from prunus.candidates.task import Result, Task
from prunus.data import Inputs
from prunus.errors import InputError
from prunus.train import answers
from prunus.train.forward import buffers_restored, foreign_errors_told, logits_of, to_place

CALIBRATION_BATCH = 64
"""Images per batch of the batch-norm statistics, as ``recalibrate_batch_norm_`` takes them."""

FEWEST_TEXTS = 16
"""Texts per forward pass, where more of one length cannot be had."""

Point = tuple[int, str]
"""A boundary, by its number, and a plan's signature there."""

_TEXT_BATCHES = 8
_MOST_SHARED = 1000  # points whose statistics are kept: some tens of kilobytes each


@dataclass(frozen=True, eq=False)
class Images:
    """Search images, what the dense network says to them, and images for batch-norm statistics.

    Attributes:
        search: Inputs, in the order in which tasks count them.
        labels: Their classes, int64 ``[images]``.
        reference: Logits of the original dense network, float32 ``[images, classes]``.
        difficulty: What the images are spread evenly by in every beginning, float64 ``[images]``.
        calibration: Batches of training inputs, of equal size.
        lengths: Tokens of every search text, int64 ``[texts]``; None: all inputs are of one size.
    """

    search: Inputs
    labels: Tensor
    reference: Tensor
    difficulty: Tensor
    calibration: tuple[Inputs, ...]
    lengths: Tensor | None = None

    def __len__(self) -> int:
        """Number of search images."""
        return len(self.labels)

    def batches(self, start: int, stop: int, size: int) -> Iterator[tuple[Tensor, Inputs]]:
        """Some images in batches, each with their positions, int64 ``[batch]``.

        Texts come sorted by length, each batch padded to its own longest, and in at least eight
        batches where these hold 16: what is computed on padding is then little.
        """
        positions = torch.arange(start, stop)
        if self.lengths is None:
            for some in torch.split(positions, size):
                yield some, rows(self.search, int(some[0]), int(some[-1]) + 1)
            return
        size = min(size, max(FEWEST_TEXTS, -(-len(positions) // _TEXT_BATCHES)))
        by_length = positions[self.lengths[start:stop].argsort(stable=True)]
        for some in torch.split(by_length, size):
            yield some, _texts(self.search, some, max(1, int(self.lengths[some].max())))


@dataclass(frozen=True)
class Tricks:
    """What makes scoring faster without changing what is scored; each can be left out.

    Attributes:
        fold: Fold batch norms into the layers before them, and ReLUs where a kernel takes them.
        memory_bytes: Most bytes of activations kept for candidates that agree in their first layers.
    """

    fold: bool = True
    memory_bytes: int = 256_000_000


class Scorer:
    """Scores tasks, one after the other, on one network.

    Args:
        network: The network that plans are for; on its device, not touched.
        images: What it is scored on.
        execution: Number format and layout.
        batch_size: Search images per forward pass; tasks begin at its multiples.
        tricks: To compute faster.
        seed: Of what the network draws from the global random states, which are given back.

    Raises:
        InputError: The network raises an error.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Images,
        *,
        execution: ScoringExecution = ScoringExecution(),  # noqa: B008  # frozen
        batch_size: int = 64,
        tricks: Tricks = Tricks(),  # frozen
        seed: int = 0,
    ) -> None:
        self._images = images
        self._execution = execution
        self._batch_size = batch_size
        self._device = next((p.device for p in network.parameters()), torch.device("cpu"))
        self._skeleton = Skeleton(network, channels_last=execution.channels_last)
        self._draws = Draws(seed, self._device)
        with (
            foreign_errors_told("before candidates are scored, on 2 search samples:"),
            torch.no_grad(),  # not inference mode: what the network's code keeps is trained on
            self._draws.kept(),
            buffers_restored(network),
        ):
            self._draws.begin("trial")
            sample = self._placed(rows(images.search, 0, 2))
            # Where nothing is kept, no beginning is worth it: trying them takes seconds.
            least = LEAST_WORK if tricks.memory_bytes else math.inf
            self.prefix = Prefix(self._skeleton, sample, least_work=least)
            self._pairs = find_pairs(network, sample) if tricks.fold else ()
            halves = execution.precision == "bfloat16"
            dtype = torch.bfloat16 if halves else torch.float32
            self._rectified = find_rectified(network, self._pairs, sample, dtype)
            fast = self._rectified or execution.weight_bits
            self._doubting = bool(fast) and may_break(self._skeleton.module, sample)
            self._int8 = self._find_int8(network) if execution.weight_bits else None
        self._draws = Draws(seed, self._device, host=self.prefix.draws_on_host)
        self._converted = converted_layers(self._skeleton) if halves else ()
        self._cache = PrefixCache(tricks.memory_bytes)
        self._shared_statistics: dict[tuple[int, str], dict[str, tuple[Tensor, Tensor]]] = {}

    def _find_int8(self, network: nn.Module) -> Int8Layers:
        bits = self._execution.weight_bits
        remedy = "go on on such machines alone, or begin a run with another precision"
        require_int8(network, bits, remedy)
        calibration = [self._placed(batch) for batch in self._images.calibration]
        found = find_int8(network, calibration, self._pairs, self._rectified)
        mine = {one.layer for one in found}
        self._pairs = tuple(pair for pair in self._pairs if pair.layer not in mine)
        self._rectified = tuple(one for one in self._rectified if one.layer not in mine)
        return Int8Layers(self._skeleton, found, bits=bits, doubting=self._doubting)

    def __call__(self, task: Task) -> Result:
        """Score a candidate on the images of a task.

        Raises:
            InputError: The task begins in the middle of a batch, or ends beyond the images; or the
                network raises an error.
        """
        begin = time.perf_counter()
        size = self._batch_size
        if task.start % size or not task.start < task.stop <= len(self._images):
            raise InputError(
                f"a task on images {task.start} to {task.stop} does not fit {len(self._images)} "
                f"images in batches of {size}"
            )
        with torch.no_grad(), self._draws.kept():
            signatures = self.prefix.signatures(task.plan) if task.share else ()
            self._skeleton.load(task.plan)
            if self._int8 is not None:
                self._int8.load()
            # Activations behind other statistics are other activations.
            points = [
                (index, f"{signatures[index]} {task.calibration}")
                for index in task.share
                if signatures
            ]
            statistics = task.statistics
            if statistics is None or task.measured is not None:
                statistics = self._calibrate(points, task)
            self._install(statistics)
            fold_(self._skeleton, self._pairs)
            convert_(self._skeleton, self._converted, torch.bfloat16)
            rectify_(self._skeleton, self._rectified, doubting=self._doubting)
            if self._int8 is not None:
                self._int8.fold()
            parts = [
                (positions, *self._compare(positions, inputs, points))
                for positions, inputs in self._images.batches(task.start, task.stop, size)
            ]
        positions, kl, loss, correct = (torch.cat(column) for column in zip(*parts, strict=True))
        order = positions.argsort()
        return Result(
            key=task.key,
            start=task.start,
            stop=task.stop,
            kl=kl[order].float().numpy(),
            loss=loss[order].float().numpy(),
            correct=correct[order].numpy(),
            statistics=statistics,
            seconds=time.perf_counter() - begin,
        )

    @property
    def prefix_hits(self) -> int:
        """Batches that began at a kept activation."""
        return self._cache.hits

    # -- forward passes -----------------------------------------------------------------------

    def _placed(self, inputs: Inputs) -> Inputs:
        return to_place(inputs, self._device, channels_last=self._execution.channels_last)

    def _logits(
        self,
        inputs: Inputs,
        points: Sequence[Point],
        known: Sequence[Point],
        at: tuple[str, Hashable],
    ) -> Tensor:
        """Run the loaded candidate from the deepest known activation on, and keep those at points.

        Where a fast layer was given what is no number, nothing is kept: it may have made one of it.
        """
        phase, item = at
        if self._skeleton.plain:  # which rounds otherwise: neither taken over nor handed on
            points = known = ()
        start: tuple[int, Passed] | None = None
        for index, signature in reversed(known):
            passed = self._cache.get((phase, index, signature), item)
            if passed is not None:
                start = index, passed
                break
        missing = [index for index, _ in points if start is None or index > start[0]]
        count = len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))
        with (
            foreign_errors_told(f"scoring a candidate on {count} samples:"),
            self._execution.autocast(self._device),
        ):
            out, passes = self.prefix.run(self._placed(inputs), start, missing)
        names = dict(points)
        for index, passed in () if self._skeleton.doubtful else passes.items():
            self._cache.put((phase, index, names[index]), item, passed)
        return logits_of(out)

    def _compare(
        self, positions: Tensor, inputs: Inputs, points: Sequence[Point]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """KL(dense || candidate), cross-entropy and hits of some images, ``[batch]`` each."""
        at, first = ("score", positions.numpy().tobytes()), int(positions[0])
        self._draws.begin("score", first)
        logits = self._logits(inputs, points, points, at)
        if self._skeleton.doubtful:
            plain, self._skeleton.plain = self._skeleton.plain, True
            self._draws.begin("score", first)
            logits = self._logits(inputs, (), (), at)
            self._skeleton.plain, self._skeleton.doubtful = plain, False
        logits = logits.double().cpu()
        labels = self._images.labels[positions]
        dense = log_softmax(self._images.reference[positions].double(), dim=1)
        terms = dense.exp() * (dense - log_softmax(logits, dim=1))
        # What the dense network never says (probability 0) costs nothing: 0 log 0 = 0.
        kl = terms.masked_fill(dense == -torch.inf, 0).sum(dim=1)
        right = answers(logits) == labels
        return kl, cross_entropy(logits, labels, reduction="none"), right

    # -- batch norm ---------------------------------------------------------------------------

    def _calibrate(self, points: Sequence[Point], task: Task) -> bytes:
        """Measure batch-norm statistics as ``recalibrate_batch_norm_`` does; returns them packed.

        Each batch counts equally, so that what is known of the first ones is gone on from.
        """
        known = [point for point in points if point in self._shared_statistics]
        self._measure(points, known, task)
        if self._skeleton.doubtful:  # rounded to bytes: the statistics are not what they seem
            self._skeleton.plain, self._skeleton.doubtful = True, False
            self._measure((), (), task)
        if not self._skeleton.plain:
            self._share_statistics(points, known)
        rows = [t.float().cpu() for name in self._skeleton.norms for t in self._running(name)]
        return torch.cat(rows).numpy().tobytes() if rows else b""

    def _measure(self, points: Sequence[Point], known: Sequence[Point], task: Task) -> None:
        """Run the batches that the statistics of a task still need."""
        skeleton = self._skeleton
        begun = 0 if task.statistics is None else task.measured or 0
        norms: list[Any] = [skeleton.submodule(name) for name in skeleton.norms]
        momenta = [norm.momentum for norm in norms]
        if task.statistics is not None:
            self._install(task.statistics, begun)
        for name, norm in zip(skeleton.norms, norms, strict=True):
            mean, var = self._running(name)
            if task.statistics is None:
                skeleton.put_statistics(name, torch.zeros_like(mean), torch.ones_like(var))
            norm.momentum = None  # cumulative average (torch.nn.BatchNorm2d)
            norm.training = True
        batches = list(enumerate(self._images.calibration[: task.calibration]))
        try:
            for item, inputs in batches[begun:] if norms else ():
                self._draws.begin("calibrate", item)
                # Activations without the statistics of the layers before them are of no use here.
                self._logits(inputs, points, known, ("calibrate", item))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                norm.training = False

    def _share_statistics(self, points: Sequence[Point], known: Sequence[Point]) -> None:
        """Take the statistics of layers that did not run, and keep those that others will need."""
        if known:
            for name, (mean, var) in self._shared_statistics[known[-1]].items():
                self._skeleton.put_statistics(name, mean, var)
        for index, signature in points:
            while len(self._shared_statistics) >= _MOST_SHARED:
                self._shared_statistics.pop(next(iter(self._shared_statistics)))
            owners = self.prefix.boundaries[index].owners
            self._shared_statistics.setdefault(
                (index, signature),
                {name: self._running(name) for name in self._skeleton.norms if name in owners},
            )

    def _install(self, statistics: bytes, batches: int = 0) -> None:
        """Give the batch norms of the loaded candidate packed statistics, of some batches."""
        if len(statistics) % 4:
            raise InputError(
                f"{len(statistics)} bytes of batch-norm statistics are no float32 values"
            )
        values = torch.from_numpy(np.frombuffer(statistics, dtype="<f4").copy())
        at = 0
        for name in self._skeleton.norms:
            pair = []
            for like in self._running(name):
                pair.append(values[at : at + like.numel()].to(like))
                at += like.numel()
            mean, var = pair
            # A norm counts its calls, of which weights shared over depth make several a batch.
            count = batches * self.prefix.calls.get(name, 0)
            self._skeleton.put_statistics(name, mean, var, count)
        if at != values.numel():
            raise InputError(
                f"{values.numel()} batch-norm statistics for {at} channels: they are of another plan"
            )

    def _running(self, norm: str) -> tuple[Tensor, Tensor]:
        module = self._skeleton.submodule(norm)
        return module.running_mean, module.running_var  # type: ignore[return-value]


def rows(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Some samples of a batch."""
    if isinstance(inputs, Tensor):
        return inputs[start:stop]
    return {name: tensor[start:stop] for name, tensor in inputs.items()}


def _texts(inputs: Inputs, positions: Tensor, longest: int) -> Inputs:
    """Texts without the padding that is common to them."""
    if isinstance(inputs, Tensor):
        return inputs[positions, :longest]
    return {name: tensor[positions, :longest] for name, tensor in inputs.items()}
