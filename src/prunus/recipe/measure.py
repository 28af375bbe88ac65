"""Measurements of a run: looks at the test split, costs that must agree, latencies side by side."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from prunus.data import DataSplits
from prunus.errors import PrunusError
from prunus.graph import Inputs
from prunus.meter import measure_cost, measure_latencies, peak_memory_bytes
from prunus.plan import Bits, Record
from prunus.progress import Progress
from prunus.recipe.folder import keep_record, with_way_on
from prunus.recipe.inputs import stated
from prunus.records import Cost, Environment, Latency, Score, Stage
from prunus.train import answers, evaluation_of, predictions

LOOKS_FILE = "looks.json"


class LatencyOptions(Record):
    """How latency is measured.

    Attributes:
        repeats: Timed passes; 30 or more, for a percentile worth reporting.
        warmup: Untimed passes before.
        batch: Samples per pass.
        threads: CPU threads of PyTorch; None leaves them as they are.
    """

    repeats: int = Field(default=50, ge=30)
    warmup: int = Field(default=10, ge=1)
    batch: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1)


class Look(Record):
    """One look at the test split.

    Attributes:
        score: What was seen.
        evaluations: Passes behind the score, as the split itself counted them.
        lost: Earlier looks at this stage that a kill took the result of; none was ever reported.
    """

    score: Score
    evaluations: int
    lost: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        if not self.lost:
            return ()
        what = "the look at the test split was repeated after a kill"
        return (f"{self.score.stage}: {what} (results lost unseen: {self.lost})",)


class LookJournal(Record):
    """Looks that were begun in a run folder, by stage: written before each, so that none is forgotten."""

    begun: dict[str, int] = Field(default_factory=dict)


def look(
    network: nn.Module, data: DataSplits, stage: Stage, device: str, journal: Path | None = None
) -> Look:
    """Score a network on the test split.

    Args:
        network: Not touched.
        data: Its test split counts its passes.
        stage: Of the run.
        device: ``"cpu"`` or ``"cuda"``.
        journal: File that is told before the split is read.

    Raises:
        PrunusError: The split counted another number of passes than one.
    """
    return look_by(lambda: predictions(network, data.test, device=device), data, stage, journal)


def look_by(
    logits: Callable[[], Tensor], data: DataSplits, stage: Stage, journal: Path | None
) -> Look:
    """A look at the test split by any means; for the rest see ``look``.

    Args:
        logits: Passes over the test split once; ``[samples, classes]`` in its order.
        data: Its test split counts its passes.
        stage: Of the run.
        journal: File that is told before the split is read.
    """
    lost = 0
    if journal is not None:
        begun: dict[str, int] = {}
        if journal.exists():
            with with_way_on(
                f"to go on without the count of lost looks, delete {journal} and resume"
            ):
                begun |= LookJournal.load(journal).begun
        lost = begun.get(stage, 0)
        keep_record(LookJournal(begun={**begun, stage: lost + 1}), journal)
    before = data.test.evaluations
    seen, labels = logits(), data.test.labels
    require_looks(data, before, 1, f"the look at stage {stage}")
    found = evaluation_of(seen, labels, classes=data.test.num_classes)
    score = Score(
        metric=data.metric,
        value=found.f1 if data.metric == "f1" else found.top1,
        top1=found.top1,
        f1=found.f1,
        precision=found.precision,
        recall=found.recall,
        correct=Bits.pack((answers(seen) == labels).numpy()),
        loss=found.loss,
        samples=found.samples,
        split="test",
        stage=stage,
    )
    return Look(score=score, evaluations=data.test.evaluations - before, lost=lost)


def require_looks(data: DataSplits, before: int, looks: int, what: str) -> None:
    """The test split must have counted so many passes since ``before``, and no more.

    Raises:
        PrunusError: It was read otherwise.
    """
    counted = data.test.evaluations - before
    if counted != looks:
        raise PrunusError(
            f"{what} read the test split {counted} times, {looks} are reported; a method or network "
            "that reads test samples cannot be scored on them"
        )


def accounted_cost(network: nn.Module, one: Inputs, predicted: Cost, what: str) -> Cost:
    """Count the cost of a network; the count must be what the trace predicted.

    MACs may differ where the network runs operations that cannot be counted: the cost names them in
    ``uncounted``.

    Raises:
        PrunusError: MACs or parameters differ.
    """
    counted = measure_cost(network, one)
    pairs = (
        ("MACs", predicted.macs, counted.macs),
        ("parameters", predicted.params, counted.params),
    )
    for name, expected, found in pairs:
        known = name == "parameters" or not counted.uncounted
        if known and expected != found:
            raise PrunusError(
                f"accounting mismatch: {what} should have {expected} {name}, {found} were counted; "
                "please report this network, the certificate does not cover its costs"
            )
    return counted


@dataclass(frozen=True)
class Timed:
    """A network, and what it is timed on."""

    network: nn.Module
    inputs: Inputs
    data: DataSplits

    @property
    def samples(self) -> int:
        """Most of a batch."""
        return max(samples_in(self.inputs), len(self.data.train))

    def batch(self, samples: int, device: str) -> Inputs:
        """So many samples, on the device; all that there are, if fewer."""
        batch = self.inputs
        if samples > samples_in(batch):
            batch = next(iter(self.data.train.batches(samples)))[0]
        return _to(stated(batch, samples, self.data), device)


def timed_as_asked(found: Latency | None, asked: LatencyOptions | None, of: Timed) -> bool:
    """Whether a latency need not be measured anew: none is wanted, or it was measured as is asked now.

    Args:
        found: Measured before; None: it was not.
        asked: How it is measured; None: not at all.
        of: The network.
    """
    if asked is None or found is None:
        return asked is None
    threads = asked.threads or torch.get_num_threads()
    wanted = (asked.repeats, asked.warmup, min(asked.batch, of.samples), threads)
    return (found.repeats, found.warmup, found.batch, found.threads) == wanted


def compare_latencies(
    dense: Timed, small: Timed, *, options: LatencyOptions, device: str
) -> tuple[Latency, Latency]:
    """Time both networks round robin, and measure the peak memory of one pass of each."""
    pairs = {
        name: (copy.deepcopy(one.network).to(device).eval(), one.batch(options.batch, device))
        for name, one in (("dense", dense), ("small", small))
    }
    found = measure_latencies(
        pairs,
        batch=samples_in(pairs["dense"][1]),
        warmup=options.warmup,
        repeats=options.repeats,
        threads=options.threads,
        device=device,
    )
    first, second = (
        found[name].model_copy(
            update={"peak_memory_bytes": peak_memory_bytes(network, batch, device)}
        )
        for name, (network, batch) in pairs.items()
    )
    return first, second


def environment(device: str) -> Environment:
    """The machine, and PyTorch's threads on it."""
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return Environment.capture(torch.get_num_threads(), gpu=gpu)


@contextmanager
def phase(progress: Progress, name: str) -> Iterator[None]:
    """Tell of work that is one step."""
    progress.start(name, 1)
    try:
        yield
        progress.advance()
    finally:
        progress.finish()


def samples_in(inputs: Inputs) -> int:
    """How many samples a batch holds."""
    values: Any = (
        [inputs]
        if isinstance(inputs, Tensor)
        else list(inputs.values() if isinstance(inputs, dict) else inputs)
    )
    return next((len(v) for v in values if isinstance(v, Tensor) and v.ndim), 1)


def _to(inputs: Inputs, device: str) -> Inputs:
    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, tuple | list):
        return tuple(move(value) for value in inputs)
    return {name: move(value) for name, value in inputs.items()}
