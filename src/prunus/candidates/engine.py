"""The engine: candidates in, scores out; nothing is scored twice, nothing durable is lost."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Self

import numpy as np

from prunus.candidates.halving import fitness, rung_ends, survivors
from prunus.candidates.options import Candidate, Scored, Scoring
from prunus.candidates.phenotype import phenotype
from prunus.candidates.scorer import CALIBRATION_BATCH
from prunus.candidates.sharing import in_sharing_order
from prunus.candidates.store import STORE_FILE, Store
from prunus.candidates.task import FloatArray, Result, Task
from prunus.candidates.workplace import Workplace, gather_images, identity, open_workplace
from prunus.errors import PrunusError
from prunus.method import Context
from prunus.plan import BoolArray, Plan
from prunus.progress import Progress, Silent

WORST = 1e4
"""Nats that a score counts as where it is larger or no number: one broken image decides, finitely."""


_KEEP_SECONDS = 5.0  # between two notes of how long the search took: each waits for the disk
_QUICK = "~"  # ends the name of what was seen behind few calibration images


@dataclass(frozen=True)
class _Look:
    """Images from ``start`` to ``end``, behind statistics of some batches (None: all)."""

    start: int
    end: int
    calibration: int | None = None

    @property
    def images(self) -> int:
        return self.end - self.start

    def name(self, key: str) -> str:
        """What results of this look are kept under."""
        return key if self.calibration is None else key + _QUICK


@dataclass(eq=False)
class _Known:
    """What is known of one network, image by image from the first on.

    A resumed search knows more than it has asked for yet: only what it asked for counts, so that it
    decides as it did the first time.
    """

    kl: FloatArray = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    loss: FloatArray = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    correct: BoolArray = field(default_factory=lambda: np.empty(0, dtype=bool))
    statistics: bytes | None = None
    asked: int = 0

    @property
    def images(self) -> int:
        return len(self.kl)

    def add(self, result: Result) -> None:
        if result.start != self.images:
            raise ValueError(f"images {result.start} on came after {self.images}")
        self.kl = np.concatenate([self.kl, _finite(result.kl)])
        self.loss = np.concatenate([self.loss, _finite(result.loss)])
        self.correct = np.concatenate([self.correct, result.correct])
        self.statistics = result.statistics


class Engine:
    """Scores the candidates of one search on one network.

    Args:
        workplace: The network, its images, and who computes.
        store: Keeps every result durably; None: results live as long as this.
        progress: Told of images scored and of the best so far.
        begin: When this was begun, by ``time.perf_counter``; None: now.

    Attributes:
        earlier_seconds: That the search took in processes before this one. Nothing is decided by it.
        evaluations: Different networks scored, however often they were asked for.
    """

    def __init__(
        self,
        workplace: Workplace,
        store: Store | None = None,
        progress: Progress | None = None,
        begin: float | None = None,
    ) -> None:
        self._workplace = workplace
        self._scoring = workplace.scoring
        self._store = store
        self._progress = progress or Silent()
        self._known: dict[str, _Known] = {}
        self._plans: dict[str, Plan] = {}
        self._stored: dict[str, list[Result]] = {}
        self._read_store()
        self._begin = self._kept = time.perf_counter() if begin is None else begin
        self.earlier_seconds = 0.0 if store is None else store.seconds

    @classmethod
    def open(cls, context: Context, scoring: Scoring, *, fold: bool = True) -> Self:
        """Make an engine for a method's context; with a folder, its results are durable there.

        Args:
            context: Of the method.
            scoring: What decides scores.
            fold: Fold batch norms into the layers before them; off to measure what that brings.

        Raises:
            InputError: The context lacks data, its folder holds another search or is in use, or
                the workers cannot be had.
        """
        begin = time.perf_counter()
        images = gather_images(context, scoring)
        store = None
        if context.folder is not None:
            store = Store.open(context.folder / STORE_FILE, identity(context, images, scoring))
        try:
            workplace = open_workplace(context, scoring, images, store, fold=fold)
        except BaseException:
            if store is not None:
                store.close()
            raise
        return cls(workplace, store, context.progress, begin)

    def __enter__(self) -> Self:
        """Use as a context: the workers are let go at the end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the workers go, and the store."""
        self.close()

    def close(self) -> None:
        """Let the workers go, and the store. May be called twice."""
        self._workplace.close()
        if self._store is not None:
            # Seconds are not worth an error; the store may be closed already, or another process's.
            with suppress(PrunusError, ValueError):
                self._keep_seconds()
            self._store.close()

    def _keep_seconds(self, every: float = 0.0) -> None:
        """Make durable how long the search took: a kill must not make it look fast."""
        now = time.perf_counter()
        if self._store is not None and now - self._kept >= every:
            self._store.keep_seconds(self.earlier_seconds + now - self._begin)
            self._kept = now

    def forget(self) -> None:
        """Forget what is known but not stored."""
        self._known.clear()
        self._plans.clear()
        self._read_store()

    def _read_store(self) -> None:
        self._stored.clear()
        for result in () if self._store is None else self._store.results():
            self._stored.setdefault(result.key, []).append(result)

    @property
    def execution(self) -> str:
        """Number format and layout that candidates are scored in."""
        return self._workplace.execution.name

    @property
    def evaluations(self) -> int:
        """Different networks scored so far."""
        return len(self._plans)

    def score(self, candidates: Sequence[Candidate], top: int | None = None) -> list[Scored]:
        """Score candidates, in their order.

        Args:
            candidates: Of the network of this engine. Those that make the same network, or one
                scored before, cost nothing.
            top: How many of the best are wanted: others are dropped as soon as paired tests show
                that they are not among them. None: all are seen on all images.

        Raises:
            InputError: A candidate cannot be cut.
        """
        begin = time.perf_counter()
        keys = [self._enter(candidate) for candidate in candidates]
        unique = list(dict.fromkeys(keys))
        looks = self._looks(len(unique), top)
        left = sum(look.images for look in looks)
        self._progress.start("score candidates", len(unique) * left)
        alive = unique
        for number, look in enumerate(looks):
            left -= look.images
            # Whose full score is known needs no quick look, and is not dropped by one.
            seen = [k for k in alive if look.calibration is None or not self._complete(k)]
            self._progress.advance((len(alive) - len(seen)) * look.images)
            self._take(seen, look, begin)
            if number < len(looks) - 1 and top is not None:
                dropped = self._dropped(seen, look, top)
                self._progress.advance(len(dropped) * left)
                alive = [key for key in alive if key not in dropped]
        self._progress.finish()
        for known in self._known.values():
            known.statistics = None  # of no use until it is asked for again
        return [self._scored(c, key) for c, key in zip(candidates, keys, strict=True)]

    def _complete(self, key: str) -> bool:
        return self._entry(key).asked == self._workplace.image_count

    def _dropped(self, keys: Sequence[str], look: _Look, top: int) -> set[str]:
        """Who is not among the best after a look, by the bound of each pair."""
        values = {key: self._values(look.name(key), look.end) for key in keys}
        difficulty = self._workplace.images.difficulty.numpy()[: look.end]
        # Full scores are on these very images and the rest; quick ones stand for others.
        population = self._workplace.image_count if look.calibration is None else None
        return set(keys) - survivors(values, top, difficulty, population)

    def _looks(self, count: int, top: int | None) -> list[_Look]:
        """The parts that candidates are seen in."""
        total, scoring, size = (
            self._workplace.image_count,
            self._scoring,
            self._workplace.batch_size,
        )
        if top is None or count <= top:
            return [_Look(0, total)]
        batches = self._quick_batches
        fewer = batches < len(self._workplace.images.calibration) and self._workplace.has_statistics
        # So few images that the quick looks see most of them: no look is quick.
        worthwhile = fewer and scoring.quick_images * scoring.growth <= total
        quick = scoring.quick_images if worthwhile else 0
        first, looks = float(scoring.first_images), []
        if quick >= first:
            ends = rung_ends(quick, first, scoring.growth, size)
            looks = [_Look(a, b, batches) for a, b in pairwise((0, *ends))]
            first = quick * scoring.growth
        ends = rung_ends(total, first, scoring.growth, size)
        return [*looks, *(_Look(a, b) for a, b in pairwise((0, *ends)))]

    @property
    def _quick_batches(self) -> int:
        return -(-self._scoring.quick_calibration_images // CALIBRATION_BATCH)

    def _enter(self, candidate: Candidate) -> str:
        plan = self._workplace.trace.plan(candidate.choice, candidate.connections)
        key = phenotype(plan, self._workplace.tensors)
        self._plans.setdefault(key, plan)
        return key

    def _entry(self, name: str) -> _Known:
        if name not in self._known:
            known = self._known[name] = _Known()
            for result in sorted(self._stored.pop(name, ()), key=lambda r: r.start):
                known.add(result)
        return self._known[name]

    def _take(self, keys: Sequence[str], look: _Look, begin: float) -> None:
        """Take one look at candidates, unless it has been taken before."""
        behind = {
            key: self._plans[key] for key in keys if self._entry(look.name(key)).images < look.end
        }
        self._progress.advance((len(keys) - len(behind)) * look.images)
        tasks, owner = [], {}
        for key, share in in_sharing_order(behind, self._workplace.signatures):
            known = self._entry(look.name(key))
            statistics, measured = known.statistics, None
            if statistics is None and look.calibration is None:
                statistics, measured = self._begun(key)
            owner[look.name(key)] = key
            tasks.append(
                Task(
                    key=look.name(key),
                    plan=behind[key],
                    start=known.images,
                    stop=look.end,
                    statistics=statistics,
                    measured=measured,
                    calibration=look.calibration,
                    share=share,
                )
            )
        seen: dict[str, float] = {
            key: fitness(self._values(look.name(key), look.end))
            for key in keys
            if key not in behind
        }
        for done, result in enumerate(self._workplace.run(tasks), start=1):
            if self._store is not None:
                self._store.add(result)
                self._keep_seconds(_KEEP_SECONDS)
            self._known[result.key].add(result)
            seen[owner[result.key]] = fitness(self._values(result.key, look.end))
            values = {"best": min(seen.values())}
            if look.start == 0:
                values["candidates/s"] = done / (time.perf_counter() - begin)
            # What an earlier run left off in the middle of a look counts as this look's.
            self._progress.advance(look.images, **values)
        for key in keys:
            known = self._known[look.name(key)]
            known.asked = max(known.asked, look.end)

    def _begun(self, key: str) -> tuple[bytes | None, int | None]:
        """Statistics that a quick look measured, and of how many batches: the first of all."""
        quick = self._known.get(key + _QUICK)
        if quick is None or not quick.statistics:
            return None, None
        return quick.statistics, self._quick_batches

    def _values(self, name: str, end: int | None = None) -> FloatArray:
        known = self._known[name]
        if self._scoring.fitness == "accuracy":
            return (~known.correct[:end]).astype(np.float32)
        return (known.kl if self._scoring.fitness == "kl" else known.loss)[:end]

    def _scored(self, candidate: Candidate, key: str) -> Scored:
        name = key if self._entry(key).asked else key + _QUICK
        known, seen = self._known[name], self._known[name].asked
        return Scored(
            candidate,
            key,
            fitness=fitness(self._values(name, seen)),
            kl=float(known.kl[:seen].mean(dtype=np.float64)),
            loss=float(known.loss[:seen].mean(dtype=np.float64)),
            top1=float(known.correct[:seen].mean()),
            images=seen,
            complete=self._complete(key),
        )


def _finite(values: FloatArray) -> FloatArray:
    return np.minimum(np.nan_to_num(values, nan=WORST, posinf=WORST), np.float32(WORST))
