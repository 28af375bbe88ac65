"""What comes before the first step: checks, the trace, the dense measurement, what a trial run picks."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from prunus.artifact.weights import file_sha256
from prunus.candidates.ray_cluster import require_cluster
from prunus.candidates.workplace import rehearse, threads_of
from prunus.compute import Compute
from prunus.device import resolve_device
from prunus.errors import InputError, PrunusError
from prunus.extras import require_installed
from prunus.graph import Trace, without_packing
from prunus.graph.inputs import first_samples
from prunus.plan import Record
from prunus.progress import Progress, Silent
from prunus.recipe.actions import Action, build_method, lay_out, require_widths, searches
from prunus.recipe.execute import trace_network
from prunus.recipe.folder import RunFolder, keep_record, open_run, with_way_on
from prunus.recipe.formats import require_formats
from prunus.recipe.measure import LOOKS_FILE, LatencyOptions, Look, accounted_cost, look, phase
from prunus.recipe.reachable import first_beyond, first_misfit, require_reachable
from prunus.recipe.recipe import Recipe
from prunus.recipe.steps import Prune, Student
from prunus.recipe.subject import Subject, student_of
from prunus.recipe.teachers import Lessons
from prunus.records import Cost, Source
from prunus.train import Execution, TrainConfig
from prunus.train.precision import TRIAL_SAMPLES, choose_execution, runs_in

_PROBES = 2  # samples by which a network that is built again is told from another
_DECISIVE = ("precision", "layout", "batch_size")
"""What of ``Compute`` decides scores; a run may be resumed with another engine, or other workers."""


class DenseFile(Record):
    """Measurement of the dense network, kept so that it is looked at once.

    Attributes:
        look: At the test split.
        cost: Counted.
        seconds: Of both.
        evaluated_before: Passes over the test split that the caller had made before the run.
    """

    look: Look
    cost: Cost
    seconds: float
    evaluated_before: int = 0


@dataclass(frozen=True)
class Baseline:
    """The dense network as every run of a comparison shares it."""

    subject: Subject
    trace: Trace
    measured: DenseFile


@dataclass(frozen=True)
class Settings:
    """How runs are done, whatever their recipe.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        progress: Told of everything.
        latency: How it is measured, if at all.
        compute: Where and how searches score their candidates.
        shared: Folder for what the runs of a comparison share.
    """

    device: str = "cpu"
    progress: Progress = Silent()  # noqa: RUF009  # it holds nothing
    latency: LatencyOptions | None = LatencyOptions()  # noqa: RUF009  # frozen
    compute: Compute = Compute()  # noqa: RUF009  # frozen
    shared: Path | None = None

    def __post_init__(self) -> None:
        """Refuse settings of another kind, which would end a run where they are used.

        Raises:
            InputError: Latency is no ``LatencyOptions``, or compute no ``Compute``.
        """
        if self.latency is not None and not isinstance(self.latency, LatencyOptions):
            raise InputError(
                f"latency is {self.latency!r}; give prunus.recipe.LatencyOptions(...), or None for no latency"
            )
        if not isinstance(self.compute, Compute):
            raise InputError(f"compute is {self.compute!r}; give prunus.Compute(...)")


def recipe_source(recipe: Recipe) -> Source | None:
    """The network that a recipe names."""
    if recipe.model is None:
        return None
    return Source(model=recipe.model, arguments=recipe.arguments, weights=recipe.weights)


def checked_trace(
    subject: Subject, recipe: Recipe, runs: Sequence[Sequence[Action]], settings: Settings
) -> Trace:
    """Trace the dense network, and refuse targets that cannot be reached.

    Args:
        subject: The dense network and its data.
        recipe: Says what may be cut.
        runs: Actions of each run that begins with the network.
        settings: How it is done.

    Raises:
        BudgetError: A target is out of reach, of the network or of a run's student.
        InputError: A student cannot be built, or does not fit the data; a training is asked for in
            a format that a network cannot run in; nothing answers at the address of a Ray cluster;
            widths are asked for where no step chooses any.
        MissingExtraError: Ray is asked for and not installed.
    """
    require_widths(recipe, runs)
    if settings.compute.engine == "ray" and any(searches(a) for actions in runs for a in actions):
        # Now, not after the dense network has been trained.
        require_installed("ray", "ray")
        if settings.compute.address is not None:
            require_cluster(settings.compute.address)
    students: dict[str, Subject] = {}
    rows: list[tuple[Sequence[Action], Subject]] = []
    misfits: list[PrunusError | None] = []
    lessons = Lessons(subject)
    rehearsal = _Rehearsal(settings.compute)
    with phase(settings.progress, "trace"):
        found = trace_network(subject.network, subject, recipe)
        for actions in runs:
            first, *rest = actions
            theirs, traced, dense = subject, found, None
            if not isinstance(first.step, Student):  # which is the first step, or none
                require_reachable(actions, found)
            else:
                key = first.step.model_dump_json()
                theirs = students[key] = students.get(key) or student_of(first.step.source, subject)
                if any(action.budget is not None for action in rest):
                    traced, dense = trace_network(theirs.network, theirs, recipe), found
                    require_reachable(rest, traced, dense)
            rows.append((actions, theirs))
            plain = without_packing(theirs.network)
            misfits.append(
                first_misfit(actions, plain, theirs.inputs)
                or first_beyond(actions, plain, traced, dense)
                or lessons.first_error(actions, theirs)
                or rehearsal.first_error(actions, theirs)
            )
        require_formats(rows, subject, settings.device)
    if misfits[0] is not None and None not in misfits:  # else other rows are worth their time
        raise misfits[0]
    return found


class _Rehearsal:
    """Whether workers can build the networks that candidates are cut from; each is asked once."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._told: dict[int, PrunusError | None] = {}

    def first_error(self, actions: Sequence[Action], subject: Subject) -> PrunusError | None:
        """What keeps a run from its searches; None: nothing, or it has none."""
        if not any(searches(action) for action in actions):
            return None
        key = id(subject.network)
        if key not in self._told:
            source = subject.source if subject.rebuildable else None
            few = first_samples(subject.inputs, _PROBES)
            self._told[key] = rehearse(subject.network, source, few, self._compute)
        return self._told[key]


def run_identity(
    subject: Subject, recipe: Recipe, settings: Settings, train_first: TrainConfig | None
) -> dict[str, Any]:
    """All that decides the result of a run; threads of candidates apart, see ``fix_threads``."""
    identity = {
        "recipe": recipe.model_dump(mode="json", exclude={"model", "arguments", "weights", "data"}),
        **subject.identity,
        "device": settings.device,
        "train_first": None if train_first is None else train_first.model_dump(mode="json"),
    }
    actions = lay_out(recipe)
    steps = [(a.step, a.path) for a in actions]
    cuts = [build_method(step, path) for step, path in steps if isinstance(step, Prune)]
    if files := {str(path): file_sha256(path) for method in cuts for path in method.files}:
        identity["files"] = files
    if any(searches(action) for action in actions):
        compute = settings.compute.model_dump(mode="json")
        identity["compute"] = {name: compute[name] for name in _DECISIVE}
    return identity


def open_folder(
    out: Path | str | None, identity: Mapping[str, Any], *, resume: bool
) -> AbstractContextManager[RunFolder | None]:
    """The run folder, or nothing where none is asked for."""
    return nullcontext() if out is None else open_run(out, identity, resume=resume)


def pin(
    recipes: Sequence[Recipe], subject: Subject, folder: RunFolder | None, device: str
) -> list[Recipe]:
    """Pick number format and memory layout once for all trainings, as an input of the runs.

    A trial's timing is not reproducible: one for each run would train rows of one table in different
    formats. What is fastest for the dense network is not taken where a student cannot run in it.
    """
    if not any(recipe.wants_execution for recipe in recipes):
        return list(recipes)
    if folder is not None and folder.file.execution is not None:
        kept = folder.file.execution
        picked = Execution(kept["precision"], kept["layout"])  # type: ignore[arg-type]
        return [recipe.pinned(picked.precision, picked.layout) for recipe in recipes]
    sample = next(iter(subject.data.train.batches(TRIAL_SAMPLES)))
    picked = choose_execution(subject.network, sample, _open(recipes), resolve_device(device))
    if not all(
        runs_in(student, sample, picked, resolve_device(device))
        for student in _students(recipes, subject)
    ):
        picked = Execution()  # the plain one
    if folder is not None:
        folder.pick({"precision": picked.precision, "layout": picked.layout})
    return [recipe.pinned(picked.precision, picked.layout) for recipe in recipes]


def _open(recipes: Sequence[Recipe]) -> TrainConfig:
    """What is left to pick: nothing that all trainings say alike."""
    trains = [train for recipe in recipes for train in recipe.trainings]
    precisions, layouts = {t.precision for t in trains}, {t.layout for t in trains}
    return TrainConfig(
        epochs=1,
        lr=1.0,
        precision=precisions.pop() if len(precisions) == 1 else "auto",
        layout=layouts.pop() if len(layouts) == 1 else "auto",
    )


def _students(recipes: Sequence[Recipe], subject: Subject) -> list[nn.Module]:
    """The students of the recipes, each once."""
    steps = [recipe.steps[0] for recipe in recipes]
    sources = {s.source.model_dump_json(): s.source for s in steps if isinstance(s, Student)}
    return [student_of(source, subject).network for source in sources.values()]


def fix_threads(
    settings: Settings, actions: Sequence[Action], folder: RunFolder | None
) -> Settings:
    """Settle the CPU threads of a candidate once, as an input of the run.

    They decide rounding, and follow from the number of workers where they are not given: a run that
    is resumed with more workers keeps the threads it began with.

    Raises:
        InputError: Other threads are asked for than the run began with.
    """
    if folder is None or not any(searches(action) for action in actions):
        return settings
    asked, kept = settings.compute.threads, folder.file.candidate_threads
    if kept is None:
        kept = threads_of(settings.compute)
        folder.keep_threads(kept)
    if asked not in (None, kept):
        raise InputError(
            f"out='{folder.path}' holds another run: compute.threads was {kept} and is {asked}; "
            "leave it out to go on with what was used, or name a new folder"
        )
    return replace(settings, compute=settings.compute.model_copy(update={"threads": kept}))


def measure_dense(
    subject: Subject, found: Trace, folder: Path | None, settings: Settings
) -> Baseline:
    """Score and cost of the dense network; one look at the test split, also over resumptions."""
    file = None if folder is None else folder / "dense.json"
    if file is not None and file.exists():
        with with_way_on(f"to measure the dense network anew, delete {file} and resume"):
            return Baseline(subject, found, DenseFile.load(file))
    begin = time.perf_counter()
    before = subject.data.test.evaluations
    journal = None if folder is None else folder / LOOKS_FILE
    with phase(settings.progress, "evaluate dense"):
        cost = accounted_cost(subject.network, subject.one, found.cost({}), "the dense network")
        seen = look(subject.network, subject.data, "dense", settings.device, journal)
    seconds = time.perf_counter() - begin
    measured = DenseFile(look=seen, cost=cost, seconds=seconds, evaluated_before=before)
    if file is not None:
        keep_record(measured, file)
    return Baseline(subject, found, measured)
