"""``compress``: run a recipe on a network, and write down what happened."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunus.artifact import is_whole, save
from prunus.compute import Compute
from prunus.data import DataSplits, TextOptions
from prunus.device import resolve_device
from prunus.errors import InputError
from prunus.graph import Inputs
from prunus.plan import Plan
from prunus.progress import Progress, Silent
from prunus.recipe.actions import Action, label, lay_out
from prunus.recipe.dense import require_no_teacher, trained_first
from prunus.recipe.deployed import timed_later
from prunus.recipe.engines import require_engines
from prunus.recipe.execute import perform
from prunus.recipe.folder import RunFolder, keep_record, require_out
from prunus.recipe.formats import require_format
from prunus.recipe.measure import LOOKS_FILE, LatencyOptions, Timed, phase, timed_as_asked
from prunus.recipe.prepare import (
    Baseline,
    Settings,
    checked_trace,
    fix_threads,
    measure_dense,
    open_folder,
    pin,
    recipe_source,
    run_identity,
)
from prunus.recipe.recipe import Recipe, as_recipe, make_recipe
from prunus.recipe.resume import Donor, adopt, keep, resume
from prunus.recipe.state import State, Tools
from prunus.recipe.steps import Prune, Step
from prunus.recipe.subject import Subject, resolve_subject
from prunus.recipe.summarize import Summary, make_record
from prunus.records import RunRecord, Source
from prunus.train import TrainConfig

RECORD_FILE = "record.json"
_NOT_SAVED = (
    "no artifact was saved, as nothing says how to build the network again: give "
    "source=prunus.Source(model='FILE.py:FACTORY') beside it"
)


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


def compress(  # noqa: PLR0913  # all but three are options, by keyword only
    network: nn.Module | Source | str | None,
    recipe: Recipe | Sequence[Step],
    data: DataSplits | str | None = None,
    *,
    text: TextOptions | None = None,
    example_inputs: Inputs | None = None,
    seed: int | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    source: Source | None = None,
    train_first: TrainConfig | None = None,
    latency: LatencyOptions | None = LatencyOptions(),  # noqa: B008  # frozen
    compute: Compute = Compute(),  # noqa: B008  # frozen
) -> Compressed:
    """Compress a network by a recipe. Everything is checked before anything is computed.

    Args:
        network: A network (not touched), the name or source of one, or None for the recipe's.
        recipe: A recipe, or its steps.
        data: In three splits, or its name; the recipe's where left out.
        text: How texts are read, where the data is given by name; the recipe's where left out.
        example_inputs: A real batch for tracing and certificates; by default 16 training samples.
        seed: Of search, data order and fine-tuning; the recipe's where left out.
        out: Run folder: every finished step, the record, the artifact.
        resume: Go on in ``out`` where a killed run stopped; the result is that of an uninterrupted
            run. A folder that is not there yet is made. Latencies are measured anew where ``latency``
            or the number of threads is another.
        device: ``"cpu"`` or ``"cuda"``.
        progress: Told of everything.
        source: Builds ``network`` where that is given as a module; without it no artifact is saved
            but of a student, and the record's notes say so.
        train_first: Train the dense network before everything else, from the weights it has.
        latency: How latency is measured; None: not at all.
        compute: Where and how searches score their candidates. A run may be resumed with another
            engine, other workers and another limit of memory; its result stays the same.

    Raises:
        InputError: Something given cannot be used; the message names it.
        BudgetError: A target cannot be reached.
        CertificateError: A cut is not what its plan says; it is refused.
    """
    require_out(out, resume=resume)
    asked = as_recipe(recipe)
    if seed is not None:
        asked = make_recipe({**asked.model_dump(), "seed": seed})
    settings = Settings(device, progress or Silent(), latency, compute)
    actions = lay_out(asked)
    require_no_teacher(train_first)
    resolve_device(device)
    subject = resolve_subject(
        network if network is not None else recipe_source(asked),
        data if data is not None else asked.data,
        text=text or (None if isinstance(data, DataSplits) else asked.text),
        example_inputs=example_inputs,
        source=source,
        untrained=train_first is not None,
    )
    require_engines(subject, [actions], settings.progress, trains=train_first is not None)
    if train_first is not None:
        require_format(subject, train_first, device)
    found = checked_trace(subject, asked, [actions], settings)
    identity = run_identity(subject, asked, settings, train_first)
    with open_folder(out, identity, resume=resume) as folder:
        place = None if folder is None else folder.path
        settings = fix_threads(settings, actions, folder)
        subject = trained_first(subject, train_first, place, device, settings.progress)
        (pinned,) = pin([asked], subject, folder, device)
        baseline = measure_dense(subject, found, place, settings)
        return run_recipe(pinned, baseline, folder, settings)


def run_recipe(
    recipe: Recipe,
    baseline: Baseline,
    folder: RunFolder | None,
    settings: Settings,
    name: str = "",
    donors: Sequence[Donor] = (),
) -> Compressed:
    """Do all steps that are not done yet, then measure and write the record.

    Args:
        recipe: Pinned.
        baseline: The dense network, measured.
        folder: Of the run; None: nothing is kept.
        settings: How it is done.
        name: Of the row in a report.
        donors: Runs on the same dense network, whose first steps may be this one's, too.
    """
    actions = lay_out(recipe)
    subject = baseline.subject
    tools = _tools(recipe, baseline, folder, settings, actions)
    state, outcomes = resume(actions, subject, folder)
    if folder is not None:
        state, outcomes = adopt(donors, actions, state, outcomes, tools)
    for action in actions[len(outcomes) :]:
        state, outcome = perform(action, state, tools, _checkpoint(action, folder))
        outcomes.append(outcome)
        if folder is not None:
            keep(folder, action, state, outcome)
    file = None if folder is None else folder.path / RECORD_FILE
    artifact = None
    if folder is not None and state.origin.rebuildable:  # a student is, whatever the dense one is
        artifact = folder.path / "artifact"
    record = None if file is None else whole_record(file)
    timed = Timed(state.network, state.inputs, state.data)
    if record is not None and timed_as_asked(record.latency, settings.latency, timed):
        if artifact is not None and not is_whole(artifact):
            shutil.rmtree(artifact, ignore_errors=True)
            _save(artifact, state, record)
        return Compressed(state.network, state.plans, record, artifact)
    # Else there is none, or one whose latency was switched off or measured otherwise: it is made anew.
    outcomes = [timed_later(outcome, state, tools) for outcome in outcomes]
    summary = Summary(
        name=name or label(recipe),
        recipe=_complete(recipe, subject),
        dense_look=baseline.measured.look,
        dense_cost=baseline.measured.cost,
        dense_seconds=baseline.measured.seconds,
        evaluated_before=baseline.measured.evaluated_before,
        outcomes=tuple(outcomes),
        latency=settings.latency,
        device=settings.device,
    )
    with phase(settings.progress, "measure"):
        record = make_record(summary, subject, baseline.trace, state)
    if folder is not None:
        folder.require_there()
        if artifact is None:
            record = record.model_copy(update={"notes": (*record.notes, _NOT_SAVED)})
        else:
            _save(artifact, state, record)
        keep_record(record, folder.path / RECORD_FILE)
    return Compressed(state.network, state.plans, record, artifact)


def whole_record(file: Path) -> RunRecord | None:
    """The record of a run that is done; a damaged one is made anew, for all that it tells is kept.

    Raises:
        InputError: A folder is in its place, and may hold anything.
    """
    if file.is_dir():
        raise InputError(f"{file} is a folder; move it away and resume, to have the record anew")
    try:
        return RunRecord.load(file) if file.exists() else None
    except InputError:
        return None


def _save(artifact: Path, state: State, record: RunRecord) -> None:
    save(
        artifact,
        state.network,
        source=state.origin.source,
        plans=state.plans,
        recipe=record.recipe,
        record=record,
        example_inputs=state.inputs,
        tokenizer=state.data.tokenizer,
    )


def _tools(
    recipe: Recipe,
    baseline: Baseline,
    folder: RunFolder | None,
    settings: Settings,
    actions: Sequence[Action],
) -> Tools:
    return Tools(
        subject=baseline.subject,
        dense_trace=baseline.trace,
        recipe=recipe,
        journal=None if folder is None else folder.path / LOOKS_FILE,
        steps=None if folder is None else folder.path / "steps",
        engines=_shared(folder, settings, "engines"),
        teacher_logits=_shared(folder, settings, "teacher"),
        several_cuts=sum(isinstance(action.step, Prune) for action in actions) > 1,
        device=settings.device,
        latency=settings.latency,
        progress=settings.progress,
        compute=settings.compute,
    )


def _complete(recipe: Recipe, subject: Subject) -> Recipe:
    """The recipe with the network and the data it was run on, where a name says which."""
    named: dict[str, Any] = {"data": subject.data.name, "text": subject.data.text}
    if subject.rebuildable:
        source = subject.source
        named |= {"model": source.model, "arguments": source.arguments, "weights": source.weights}
    return recipe.model_copy(update=named)


def _checkpoint(action: Action, folder: RunFolder | None) -> Path | None:
    return None if folder is None else folder.path / "steps" / f"{action.name}.ckpt"


def _shared(folder: RunFolder | None, settings: Settings, name: str) -> Path | None:
    """A folder for all runs of a comparison, else of the run; None: nothing is kept."""
    if settings.shared is not None:
        return settings.shared / name
    return None if folder is None else folder.path / name
