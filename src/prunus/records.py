"""What happened in a run: costs, scores, certificates, environment. Frozen, JSON both ways, no torch."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticSerializationError, to_json

from prunus.plan import Bits, NetworkShape, Plan, Record, ZeroConnections

__all__ = [
    "Certificate",
    "Comparison",
    "Cost",
    "DeployedRow",
    "Environment",
    "Front",
    "FrontPoint",
    "HistoryPoint",
    "Latency",
    "LayerWidth",
    "NetworkShape",
    "Plan",
    "Record",
    "RunRecord",
    "Score",
    "Source",
]

VECTOR_INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimddp", "asimdhp", "sve", "sve2", "i8mm", "bf16", "svei8mm", "svebf16"),
)
"""That are named in records: on x86 the first two lines, on ARM the last."""

AT_CHANCE = "the dense network is no better than"
"""How the note of a run begins whose dense network tells the classes no better than a guess."""

UNTRAINED = "the network from scratch was not trained"
"""How the note of a run begins whose network ended with fresh weights."""

SHARED = "computed once, with row"
"""How the note of a step goes on that a row of a comparison took over from another."""

Stage = Literal["dense", "after_cut", "after_recalibration", "after_training", "deployed"]


class Cost(Record):
    """What a network costs. One multiply-add is one MAC; batch 1 at the stated input shape.

    ``macs`` are executed (dense) MACs: zeroed connections still count. ``effective_macs`` leave them
    out and are for information only. ``uncounted`` names operations that contract but have no rule.
    """

    macs: int = Field(ge=0)
    effective_macs: int = Field(ge=0)
    params: int = Field(ge=0)
    nonzero_params: int = Field(ge=0)
    size_bytes: int | None = Field(default=None, ge=0)
    uncounted: tuple[str, ...] = ()


class Latency(Record):
    """Time of one forward pass, in milliseconds, over ``repeats`` runs after ``warmup`` runs.

    ``lead``: untimed runs directly before each timed one, where several networks took turns; 0 in
    records of before there were any, whose times are of caches and cores that the others had left.
    """

    median_ms: float
    p95_ms: float
    iqr_ms: float
    repeats: int
    warmup: int
    batch: int
    threads: int
    device: str
    engine: str = "torch"
    peak_memory_bytes: int | None = None
    lead: int = 0


class Score(Record):
    """Quality on one split at one stage. ``value`` of top1 and f1 is in [0, 1].

    ``top1``, ``f1``, ``precision`` and ``recall`` are of the same look, see ``prunus.train.Evaluation``;
    ``correct`` says which samples are in the right class, in the order of the split, so that two
    networks can be compared pair by pair.
    """

    metric: Literal["top1", "f1"] = "top1"
    value: float
    top1: float | None = None
    f1: float | None = None
    precision: float | None = None
    recall: float | None = None
    correct: Bits | None = None
    loss: float | None = None
    samples: int = Field(gt=0)
    split: Literal["train", "search", "test"]
    stage: Stage


class Certificate(Record):
    """Proof that the cut network equals the masked dense network on real inputs.

    Differences are relative to the size of what differs: a small output beside large ones is measured
    by itself. Float32 must be within 1e-5, or float64 within 1e-10.
    """

    passed: bool
    eval_difference: float
    train_difference: float | None
    eval_difference_float64: float | None = None
    train_difference_float64: float | None = None
    samples: int
    reason: str = ""


class LayerWidth(Record):
    """Width of one coupled group before and after, in units; ``refused`` says why it cannot be cut."""

    group: str
    before: int
    after: int
    refused: str = ""


class HistoryPoint(Record):
    """One line of a search's or a training's history."""

    phase: str
    step: int
    seconds: float
    values: dict[str, float]


class FrontPoint(Record):
    """A network on a front: what it costs, how good it is before any training, what it keeps.

    ``fitness`` is what the search compared (lower is better): the mean of ``kl`` (nats, to the dense
    network), of ``loss``, or ``1 - top1``, all on images of the search split. ``chosen``: the run went
    on with this one. ``search``: which of a run's searches listed it, from 0. ``keep`` is by group, for the network that ``Front.source`` describes.
    """

    macs: int = Field(ge=0)
    params: int = Field(ge=0)
    fitness: float
    kl: float
    loss: float
    top1: float
    chosen: bool = False
    search: int = Field(default=0, ge=0)
    keep: dict[str, Bits] = Field(default_factory=dict)
    connections: tuple[ZeroConnections, ...] = ()


class Front(Record):
    """Networks of which none is better and cheaper than another: one search, many budgets.

    ``weights``: SHA-256 of the parameters that fitness was measured with; empty in files of before.
    """

    version: Literal[1] = 1
    source: NetworkShape
    weights: str = ""
    points: tuple[FrontPoint, ...]


class Source(Record):
    """Where a network comes from: built again by the same loader, without any pickle."""

    model: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None

    @model_validator(mode="after")
    def _is_json(self) -> Self:
        try:
            to_json(self.arguments)
        except PydanticSerializationError as error:
            raise ValueError(
                f"arguments={self.arguments!r} cannot be written as JSON ({error}); give numbers, "
                "strings, lists and the like, and make the rest of them in the factory"
            ) from error
        return self


class DeployedRow(Record):
    """A network as it runs in an engine, measured there.

    Attributes:
        engine: ``torch``, ``onnxruntime`` or ``openvino``.
        weights: Number format of linear and convolutional layers.
        embeddings: Number format of word embeddings.
        size_bytes: Of the files that hold the model.
        latency: Of this network, as in the record; None: not measured.
        own_float32_latency: Of the dense network in float32 on the same engine, timed in turns with
            it: what the method, and not the engine, has to beat.
        dense_latency: Of the dense network in PyTorch, timed in turns with both.
        load_seconds: From the files to a session, in a process of its own.
        prediction_agreement: Share of search samples that it puts in the class of the network that
            it was made from.
        logit_difference: Largest difference to that network's logits there, over their largest.
        notes: What was kept in float, and why.
    """

    engine: str
    weights: str
    embeddings: str
    calibration: str = ""
    size_bytes: int = Field(ge=0)
    latency: Latency | None = None
    own_float32_latency: Latency | None = None
    dense_latency: Latency | None = None
    load_seconds: float | None = None
    prediction_agreement: float | None = None
    logit_difference: float | None = None
    notes: tuple[str, ...] = ()


class Environment(Record):
    """Machine and versions of a run.

    Attributes:
        instructions: Vector and matrix instructions of the processor that decide how fast networks run,
            by the names of ``/proc/cpuinfo``; empty where that file is missing.
        waiting: ``OMP_WAIT_POLICY``, where it is set: with ``passive`` idle threads sleep, and small
            operations of PyTorch wait for them to wake.
        commit: Of the repository that Prunus runs from; None where it is installed.
    """

    python: str
    platform: str
    cpu: str
    instructions: tuple[str, ...] = ()
    waiting: str | None = None
    cores: int
    gpu: str | None
    threads: int
    versions: dict[str, str]
    commit: str | None
    dirty: bool | None

    @classmethod
    def capture(cls, threads: int, gpu: str | None = None, packages: Sequence[str] = ()) -> Self:
        """Read the environment of this process. ``dirty`` ignores untracked files."""
        names = [
            "torch",
            "numpy",
            "torch-pruning",
            "transformers",
            "onnxruntime",
            "prunus",
            *packages,
        ]
        versions = {}
        for name in names:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        commit, status = None, _git("status", "--porcelain", "-uno")
        # Installed below somebody's repository, as in its .venv, Prunus is no part of that.
        if _git("ls-files", "--error-unmatch", Path(__file__).name) is not None:
            commit = _git("rev-parse", "HEAD")
        return cls(
            python=sys.version.split()[0],
            platform=platform.platform(),
            cpu=processor_line("model name") or platform.processor() or platform.machine(),
            instructions=_instructions(),
            waiting=os.environ.get("OMP_WAIT_POLICY", "").lower() or None,
            cores=os.cpu_count() or 1,
            gpu=gpu,
            threads=threads,
            versions=versions,
            commit=commit,
            dirty=None if commit is None else bool(status),
        )


class RunRecord(Record):
    """One method on one network, data set, budget and seed: all a report needs.

    ``null``: whether all its cuts are of null baselines; None in records of before, whose ``method`` tells.
    ``environment``: in which it ended; ``notes`` name steps that were done in another, before a resume.
    """

    version: Literal[1] = 1
    method: str
    null: bool | None = None
    source: Source
    data: str
    seed: int
    target: dict[str, float]
    recipe: dict[str, Any]
    dense_cost: Cost
    cost: Cost
    dense_latency: Latency | None = None
    latency: Latency | None = None
    scores: tuple[Score, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    widths: tuple[LayerWidth, ...] = ()
    history: tuple[HistoryPoint, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)
    test_evaluations: dict[str, int] = Field(default_factory=dict)
    search_seen_in_pretraining: bool = False
    plans: tuple[str, ...] = ()
    deployed: DeployedRow | None = None
    environment: Environment
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_look_at_test(self) -> Self:
        """Promise 4: each reported number looked at the test split once."""
        worn = {stage: n for stage, n in self.test_evaluations.items() if n > 1}
        if worn:
            raise ValueError(f"the test split was evaluated more than once: {worn}")
        return self

    def score(self, stage: Stage, split: str = "test") -> Score | None:
        """The score of one stage on one split, or None where it was not measured."""
        return next((s for s in self.scores if (s.stage, s.split) == (stage, split)), None)


class Comparison(Record):
    """Several runs on the same network, data and target, dense baseline in each."""

    version: Literal[1] = 1
    title: str
    runs: tuple[RunRecord, ...]

    @classmethod
    def alone(cls, record: RunRecord) -> Self:
        """One run, to be reported like several."""
        return cls(title=f"{record.source.model} on {record.data}", runs=(record,))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def processor_line(*names: str, file: Path = Path("/proc/cpuinfo")) -> str:
    """What the file says of the first core under one of the names; empty where it says nothing."""
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in names:
                return value.strip()
    return ""


def multiplies_bytes() -> bool:
    """Whether this CPU sums products of bytes in 32 bits (VNNI); others do so in 16, which saturate."""
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(processor_line("flags").split())


def int8_weight_bits() -> int:
    """Bits of weights whose products with bytes this CPU sums without saturating; 0: it has no such sums.

    8 with VNNI. AVX2 sums two products in 16 bits first, which hold ``2 * 255 * 63``: 7 bits.
    """
    if multiplies_bytes():
        return 8
    return 7 if "avx2" in processor_line("flags").split() else 0


def _instructions() -> tuple[str, ...]:
    flags = processor_line("flags", "Features").split()  # x86; ARM
    return tuple(flag for flag in VECTOR_INSTRUCTIONS if flag in flags)
