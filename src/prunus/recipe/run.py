"""``compress``: run a recipe on a network, and write down what happened."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunus.artifact import save
from prunus.data import DataSplits
from prunus.graph import Inputs, Trace
from prunus.plan import Plan, Record
from prunus.progress import Progress, Silent
from prunus.recipe.actions import Action, label, lay_out, require_reachable
from prunus.recipe.dense import trained_first
from prunus.recipe.execute import Outcome, State, Tools, perform, trace_network
from prunus.recipe.folder import RunFolder, load_network, open_run, require_usable, save_network
from prunus.recipe.measure import LatencyOptions, Look, accounted_cost, look, phase
from prunus.recipe.recipe import Recipe, as_recipe, make_recipe
from prunus.recipe.steps import Step
from prunus.recipe.subject import Subject, data_digest, resolve_subject, weights_digest
from prunus.recipe.summarize import Summary, make_record
from prunus.records import Cost, RunRecord, Source
from prunus.train import Execution, TrainConfig
from prunus.train.forward import resolve_device
from prunus.train.precision import TRIAL_SAMPLES, choose_execution

RECORD_FILE = "record.json"


@dataclass(frozen=True)
class Compressed:
    """What came out.

    Attributes:
        network: On the CPU, in eval mode.
        plans: In the order in which they were cut.
        record: Of the run.
        artifact_path: Folder that ``prunus.load`` reads; None without a run folder or a source.
    """

    network: nn.Module
    plans: tuple[Plan, ...]
    record: RunRecord
    artifact_path: Path | None = None


class DenseFile(Record):
    """Measurement of the dense network, kept so that it is looked at once."""

    look: Look
    cost: Cost
    seconds: float


@dataclass(frozen=True)
class Baseline:
    """The dense network as every run of a comparison shares it."""

    subject: Subject
    trace: Trace
    measured: DenseFile


@dataclass(frozen=True)
class Settings:
    """How runs are done, whatever their recipe."""

    device: str = "cpu"
    progress: Progress = Silent()  # noqa: RUF009  # it holds nothing
    latency: LatencyOptions | None = LatencyOptions()  # noqa: RUF009  # frozen


def compress(  # noqa: PLR0913  # all but three are options, by keyword only
    network: nn.Module | Source | str | None,
    recipe: Recipe | Sequence[Step],
    data: DataSplits | str | None = None,
    *,
    example_inputs: Inputs | None = None,
    seed: int | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    source: Source | None = None,
    train_first: TrainConfig | None = None,
    latency: LatencyOptions | None = LatencyOptions(),  # noqa: B008  # frozen
) -> Compressed:
    """Compress a network by a recipe. Everything is checked before anything is computed.

    Args:
        network: A network (not touched), the name or source of one, or None for the recipe's.
        recipe: A recipe, or its steps.
        data: In three splits, or its name; the recipe's where left out.
        example_inputs: A real batch for tracing and certificates; by default 16 training samples.
        seed: Of search, data order and fine-tuning; the recipe's where left out.
        out: Run folder: every finished step, the record, the artifact.
        resume: Go on in ``out`` where a killed run stopped; the result is that of an uninterrupted
            run. A folder that is not there yet is made.
        device: ``"cpu"`` or ``"cuda"``.
        progress: Told of everything.
        source: Builds ``network`` where that is given as a module; without it no artifact is saved.
        train_first: Train the dense network before everything else, from the weights it has.
        latency: How latency is measured; None: not at all.

    Raises:
        InputError: Something given cannot be used; the message names it.
        BudgetError: A target cannot be reached.
        CertificateError: A cut is not what its plan says; it is refused.
    """
    if out is not None:
        require_usable(Path(out), resume=resume)
    asked = as_recipe(recipe)
    if seed is not None:
        asked = make_recipe({**asked.model_dump(), "seed": seed})
    settings = Settings(device, progress or Silent(), latency)
    actions = lay_out(asked)
    resolve_device(device)
    subject = resolve_subject(
        network if network is not None else recipe_source(asked),
        data if data is not None else asked.data,
        example_inputs=example_inputs,
        source=source,
        untrained=train_first is not None,
    )
    found = checked_trace(subject, asked, actions, settings)
    identity = run_identity(subject, asked, device, train_first)
    with open_folder(out, identity, resume=resume) as folder:
        place = None if folder is None else folder.path
        subject = trained_first(subject, train_first, place, device, settings.progress)
        pinned = pin(asked, subject, folder, device)
        baseline = measure_dense(subject, found, place, settings)
        return run_recipe(pinned, baseline, folder, settings)


def recipe_source(recipe: Recipe) -> Source | None:
    """The network that a recipe names."""
    if recipe.model is None:
        return None
    return Source(model=recipe.model, arguments=recipe.arguments, weights=recipe.weights)


def checked_trace(
    subject: Subject, recipe: Recipe, actions: Sequence[Action], settings: Settings
) -> Trace:
    """Trace the dense network, and refuse targets that cannot be reached."""
    with phase(settings.progress, "trace"):
        found = trace_network(subject.network, subject, recipe)
    require_reachable(tuple(actions), found)
    return found


def run_identity(
    subject: Subject, recipe: Recipe, device: str, train_first: TrainConfig | None
) -> dict[str, Any]:
    """All that decides the result of a run."""
    return {
        "recipe": recipe.model_dump(mode="json", exclude={"model", "arguments", "weights", "data"}),
        "source": subject.source.model_dump(mode="json"),
        "weights": weights_digest(subject.network),
        "data": subject.data.name,
        "data samples": data_digest(subject.data),
        "device": device,
        "train_first": None if train_first is None else train_first.model_dump(mode="json"),
    }


def open_folder(
    out: Path | str | None, identity: Mapping[str, Any], *, resume: bool
) -> AbstractContextManager[RunFolder | None]:
    """The run folder, or nothing where none is asked for."""
    return nullcontext() if out is None else open_run(out, identity, resume=resume)


def pin(recipe: Recipe, subject: Subject, folder: RunFolder | None, device: str) -> Recipe:
    """Pick number format and memory layout once for all trainings, as an input of the run."""
    if not recipe.wants_execution:
        return recipe
    if folder is not None and folder.file.execution is not None:
        kept = folder.file.execution
        return recipe.pinned(Execution(kept["precision"], kept["layout"]))  # type: ignore[arg-type]
    sample = next(iter(subject.data.train.batches(TRIAL_SAMPLES)))
    anything = TrainConfig(epochs=1, lr=1.0)
    picked = choose_execution(subject.network, sample, anything, resolve_device(device))
    if folder is not None:
        folder.pick({"precision": picked.precision, "layout": picked.layout})
    return recipe.pinned(picked)


def measure_dense(
    subject: Subject, found: Trace, folder: Path | None, settings: Settings
) -> Baseline:
    """Score and cost of the dense network; one look at the test split, also over resumptions."""
    file = None if folder is None else folder / "dense.json"
    if file is not None and file.exists():
        return Baseline(subject, found, DenseFile.load(file))
    begin = time.perf_counter()
    with phase(settings.progress, "evaluate dense"):
        cost = accounted_cost(subject.network, subject.one, found.cost({}), "the dense network")
        seen = look(subject.network, subject.data, "dense", settings.device)
    measured = DenseFile(look=seen, cost=cost, seconds=time.perf_counter() - begin)
    if file is not None:
        measured.save(file)
    return Baseline(subject, found, measured)


def run_recipe(
    recipe: Recipe,
    baseline: Baseline,
    folder: RunFolder | None,
    settings: Settings,
    name: str = "",
) -> Compressed:
    """Do all steps that are not done yet, then measure and write the record."""
    actions = lay_out(recipe)
    subject = baseline.subject
    tools = Tools(
        subject=subject,
        dense_trace=baseline.trace,
        recipe=recipe,
        several_cuts=sum(action.budget is not None for action in actions) > 1,
        device=settings.device,
        progress=settings.progress,
    )
    state, outcomes = _resume(actions, subject, folder)
    for action in actions[len(outcomes) :]:
        state, outcome = perform(action, state, tools, _checkpoint(action, folder))
        outcomes.append(outcome)
        _keep(action, state, outcome, subject, folder)
    file = None if folder is None else folder.path / RECORD_FILE
    artifact = None
    if folder is not None and subject.rebuildable:
        artifact = folder.path / "artifact"
    if file is not None and file.exists():
        return Compressed(state.network, state.plans, RunRecord.load(file), artifact)
    summary = Summary(
        name=name or label(recipe),
        recipe=_complete(recipe, subject),
        dense_look=baseline.measured.look,
        dense_cost=baseline.measured.cost,
        dense_seconds=baseline.measured.seconds,
        outcomes=tuple(outcomes),
        latency=settings.latency,
        device=settings.device,
    )
    with phase(settings.progress, "measure"):
        record = make_record(summary, subject, baseline.trace, state)
    if artifact is not None:
        save(
            artifact,
            state.network,
            source=subject.source,
            plans=state.plans,
            recipe=record.recipe,
            record=record,
        )
    if file is not None:
        record.save(file)
    return Compressed(state.network, state.plans, record, artifact)


def _complete(recipe: Recipe, subject: Subject) -> Recipe:
    """The recipe with the network and the data it was run on, where a name says which."""
    named: dict[str, Any] = {"data": subject.data.name}
    if subject.rebuildable:
        source = subject.source
        named |= {"model": source.model, "arguments": source.arguments, "weights": source.weights}
    return recipe.model_copy(update=named)


def _resume(
    actions: Sequence[Action], subject: Subject, folder: RunFolder | None
) -> tuple[State, list[Outcome]]:
    """The state after the last finished step, and what happened up to it."""
    outcomes: list[Outcome] = []
    if folder is not None:
        for action in actions:
            file = folder.path / "steps" / f"{action.name}.json"
            if not file.exists():
                break
            outcomes.append(Outcome.load(file))
    if folder is None or not outcomes:
        return State(subject.network), []
    last = folder.path / "steps" / actions[len(outcomes) - 1].name
    network, plans = load_network(last, subject.network)
    return State(network, plans, outcomes[-1].fresh), outcomes


def _checkpoint(action: Action, folder: RunFolder | None) -> Path | None:
    return None if folder is None else folder.path / "steps" / f"{action.name}.ckpt"


def _keep(
    action: Action, state: State, outcome: Outcome, subject: Subject, folder: RunFolder | None
) -> None:
    """Save a finished step: first the network, then the file that marks it as done."""
    if folder is None:
        return
    steps = folder.path / "steps"
    source = subject.source if subject.rebuildable else None
    save_network(steps / action.name, state.network, state.plans, source)
    outcome.save(steps / f"{action.name}.json")
    (steps / f"{action.name}.ckpt").unlink(missing_ok=True)
