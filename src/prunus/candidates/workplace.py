"""Where candidates are scored: the network, its images and the workers, from a method's context."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor, nn

from prunus.candidates.draws import Draws
from prunus.candidates.execution import ScoringExecution
from prunus.candidates.int8_find import require_int8
from prunus.candidates.options import Scoring
from prunus.candidates.prefix import Prefix
from prunus.candidates.processes import ProcessExecutor
from prunus.candidates.ray_cluster import RayExecutor
from prunus.candidates.readable import require_children
from prunus.candidates.scorer import CALIBRATION_BATCH, FEWEST_TEXTS, Images, Scorer, Tricks, rows
from prunus.candidates.serial import SerialExecutor
from prunus.candidates.setup import Blueprint, Setup, make_scorer
from prunus.candidates.skeleton import Skeleton
from prunus.candidates.store import Store
from prunus.candidates.task import Executor, Result, Task
from prunus.candidates.trial import choose_execution
from prunus.compute import Compute
from prunus.data import Inputs, SearchSplit, TrainSplit, tensors_digest
from prunus.device import resolve_device
from prunus.errors import DataError, InputError
from prunus.graph import Inputs as Example
from prunus.graph import Trace, call, relative_difference, without_packing
from prunus.method import Context
from prunus.plan import Plan
from prunus.records import Source
from prunus.seeding import seeded
from prunus.train import predictions
from prunus.train.forward import (
    buffers_restored,
    foreign_errors_told,
    logits_of,
    modes_restored,
    placed,
    to_place,
)

_BATCH, _GPU_BATCH, _ROUNDING = 64, 256, 1e-3  # 64 images stay in a CPU's caches
_PROBES = 4  # samples by which workers see that they have built the network that is searched


@dataclass(frozen=True, eq=False)
class Workplace:
    """Everything that scoring needs besides the candidates.

    Attributes:
        network: That candidates are cut from; on the device.
        trace: Of the network.
        images: What candidates are scored on.
        scoring: What decides scores.
        compute: What decides where they are computed.
        execution: Number format and layout, as the trial or the settings said.
        executor: Who computes.
    """

    network: nn.Module
    trace: Trace
    images: Images
    scoring: Scoring
    compute: Compute
    execution: ScoringExecution
    executor: Executor
    prefix: Prefix | None

    @property
    def batch_size(self) -> int:
        """Images per forward pass."""
        return self.compute.batch_size

    @property
    def image_count(self) -> int:
        """Search images that a complete score is on."""
        return len(self.images)

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """Parameters and buffers by name."""
        return _state(self.network)

    @cached_property
    def has_statistics(self) -> bool:
        """Whether there are batch norms to measure anew."""
        return any(name.endswith("running_mean") for name in self.tensors)

    def signatures(self, plan: Plan) -> tuple[str, ...]:
        """Hashes of what a plan makes of each beginning; none where nothing is kept anyway."""
        return () if self.prefix is None else self.prefix.signatures(plan)

    def run(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Results of all tasks, in the order in which they end."""
        with threads(threads_of(self.compute)):
            yield from self.executor.run(tasks)

    def close(self) -> None:
        """Let the workers go."""
        self.executor.close()


def gather_images(context: Context, scoring: Scoring) -> Images:
    """Search images, the dense network's logits, and calibration batches.

    Images come in an order of which every beginning is a fair sample: from the sure to the unsure
    evenly, as the dense network has it. A few images then say more than as many random ones.

    Raises:
        InputError: The context has no training or no search split.
        DataError: Too few training images for batch-norm statistics.
    """
    train, search = _splits(context)
    drawn = search.subset(min(scoring.images, len(search)), context.seed)
    # In one batch, so that texts are all padded to one length; the scorer cuts what is common.
    inputs, labels = next(iter(drawn.batches(len(drawn))))
    available = min(scoring.calibration_images, len(train))
    if available < 2:
        raise DataError(f"batch-norm statistics need 2 images; the train split has {len(train)}")
    size = min(CALIBRATION_BATCH, available)
    generator = torch.Generator().manual_seed(context.seed)
    batches = islice(train.batches(size, generator=generator), available // size)
    lengths = drawn.samples.store.lengths
    original = without_packing(_original(context))
    draws = Draws(context.seed, resolve_device(context.device))
    with threads(threads_of(context.compute)), draws.kept(), buffers_restored(original):
        reference = _reference(original, inputs, draws, f"{drawn.name}:")
        if lengths is not None:
            apart = predictions(original, drawn, batch_size=FEWEST_TEXTS, device=context.device)
            if relative_difference(reference, apart) > _ROUNDING:
                lengths = None  # its answers follow the padding: all candidates get the same
    difficulty = _entropy(reference)
    order = spread_order(difficulty)
    return Images(
        search={n: t[order] for n, t in inputs.items()}
        if isinstance(inputs, dict)
        else inputs[order],
        labels=labels[order],
        reference=reference[order],
        difficulty=difficulty[order],
        calibration=tuple(batch for batch, _ in batches),
        lengths=None if lengths is None else lengths[drawn.samples.indices][order],
    )


def _reference(network: nn.Module, inputs: Inputs, draws: Draws, data: str) -> Tensor:
    """Logits of samples in one padding, float32 ``[samples, classes]`` on the CPU."""
    where, count = draws.device, len(next(iter(_parts(inputs).values())))
    size = _BATCH if where.type == "cpu" else _GPU_BATCH
    logits = []
    with (
        modes_restored(network),
        placed(network, where, channels_last=False),
        torch.no_grad(),  # what the network keeps of a forward pass may be trained on later
    ):
        network.eval()
        for at in range(0, count, size):
            batch = to_place(rows(inputs, at, at + size), where, channels_last=False)
            draws.begin("reference", at)
            some = min(size, count - at)
            with foreign_errors_told(f"{data} on {some} samples of the search split"):
                # Of a copy: a network may work in place, and candidates are to see the images.
                logits.append(logits_of(call(network, batch)).float().cpu())
    return torch.cat(logits)


def spread_order(values: Tensor) -> Tensor:
    """Positions such that the values of every beginning are spread as evenly as they can be.

    The sorted values are visited at multiples of the golden ratio, modulo 1, from the middle on:
    each visit falls into the widest gap that is left (Weyl's equidistributed sequence).

    >>> spread_order(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])).tolist()
    [2, 0, 3, 1, 4]
    """
    count = len(values)
    golden = (math.sqrt(5) - 1) / 2
    visits = (0.5 + golden * torch.arange(count, dtype=torch.float64)).frac()
    ranks = torch.argsort(torch.argsort(visits))
    return torch.argsort(values, stable=True)[ranks]


def _entropy(logits: Tensor) -> Tensor:
    """Of the classes, in nats, ``[images]``; rounded, so that ties stay ties on every machine."""
    logs = torch.log_softmax(logits.double(), dim=1)
    return -(logs.exp() * logs).sum(dim=1).mul(1e4).round()


def identity(context: Context, images: Images, scoring: Scoring) -> dict[str, str]:
    """All that decides scores, by name; one text each."""
    compute = context.compute
    return {
        "network": tensors_digest(_state(context.network)),
        "original network": tensors_digest(_state(_original(context))),
        "search images": tensors_digest({"labels": images.labels, **_parts(images.search)}),
        "calibration images": tensors_digest(
            {f"{i}{n}": t for i, b in enumerate(images.calibration) for n, t in _parts(b).items()}
        ),
        "images": str(len(images)),
        "batch_size": str(compute.batch_size),
        "threads": str(threads_of(compute)),
        "precision": compute.precision,
        "layout": compute.layout,
        "device": context.device,
        "torch": torch.__version__,
    } | {k: str(v) for k, v in scoring.model_dump().items() if "calibration" in k}


def open_workplace(
    context: Context, scoring: Scoring, images: Images, store: Store | None, *, fold: bool = True
) -> Workplace:
    """Choose the execution once, and hire the workers.

    Raises:
        InputError: The network cannot be sent to the workers, or these cannot be reached.
        MissingExtraError: Ray is asked for and not installed.
    """
    compute, seed = context.compute, context.seed
    network = context.network.to(resolve_device(context.device))
    with threads(threads_of(compute)):
        execution = _execution(network, context.trace, images, compute, store)
        tricks = Tricks(fold=fold, memory_bytes=compute.memory_mb * 1_000_000)
        executor: Executor
        prefix: Prefix | None = None
        if compute.engine == "serial":
            scorer = Scorer(
                network,
                images,
                execution=execution,
                batch_size=compute.batch_size,
                tricks=tricks,
                seed=seed,
            )
            prefix = scorer.prefix
            executor = SerialExecutor(scorer)
        else:
            if compute.memory_mb:
                with torch.no_grad(), seeded(seed):
                    sample = to_place(
                        rows(images.search, 0, 2),
                        resolve_device(context.device),
                        channels_last=False,
                    )
                    prefix = Prefix(Skeleton(network), sample)
            few = rows(images.search, 0, _PROBES)
            blueprint = Blueprint.of(network, context.source, context.plans, few)
            blueprint.require_readable(type(network).__name__, compute.engine)
            setup = Setup.of(
                blueprint, images, execution, compute.batch_size, tricks, context.device, seed
            )
            executor = _hire(setup, compute)
    return Workplace(
        network,
        context.trace,
        images,
        scoring,
        compute,
        execution,
        executor,
        prefix if compute.memory_mb else None,
    )


def rehearse(
    network: nn.Module, source: Source | None, samples: Example, compute: Compute
) -> InputError | None:
    """What would keep workers from building a network, before anything is trained; None: nothing.

    Args:
        network: Dense, not touched.
        source: Builds it; None where there is none.
        samples: A few.
        compute: Says who scores.
    """
    try:
        if compute.engine == "processes":
            require_children()
        if compute.engine != "serial":
            blueprint = Blueprint.of(network, source, (), samples)
            blueprint.require_readable(type(network).__name__, compute.engine)
            blueprint.build()
    except InputError as error:
        return error
    return None


def threads_of(compute: Compute) -> int:
    """CPU threads of each candidate."""
    return compute.threads or max(1, torch.get_num_threads() // compute.workers)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many CPU threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _hire(setup: Setup, compute: Compute) -> Executor:
    count = threads_of(compute)
    if compute.engine == "processes":
        return ProcessExecutor(make_scorer, setup, workers=compute.workers, threads=count)
    return RayExecutor(
        make_scorer, setup, workers=compute.workers, threads=count, address=compute.address
    )


def _execution(
    network: nn.Module, trace: Trace, images: Images, compute: Compute, store: Store | None
) -> ScoringExecution:
    """What an earlier part of this run picked, or what a trial picks now."""
    picked = None if store is None else store.setting("execution")
    if picked is not None:
        execution = ScoringExecution.named(picked)
        if execution.weight_bits:
            remedy = "this run has scores in it: go on on such a machine, or begin a new run"
            require_int8(network, execution.weight_bits, remedy)
        return execution
    execution = choose_execution(network, trace, images, compute)
    if store is not None:
        store.set_setting("execution", execution.name)
    return execution


def _splits(context: Context) -> tuple[TrainSplit, SearchSplit]:
    if context.train is None:
        raise InputError("scoring candidates needs training data; give the context train=")
    if context.search is None:
        raise InputError("scoring candidates needs search data; give the context search=")
    return context.train, context.search


def _parts(inputs: Inputs) -> dict[str, Tensor]:
    return {"inputs": inputs} if isinstance(inputs, Tensor) else inputs


def _original(context: Context) -> nn.Module:
    return context.network if context.original is None else context.original


def _state(network: nn.Module) -> dict[str, Tensor]:
    return dict([*network.named_parameters(), *network.named_buffers()])
