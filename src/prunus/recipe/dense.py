"""Train a network that is not cut: the dense network of a comparison, or one on its own."""

import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from prunus.artifact import is_whole
from prunus.data import DataSplits, TextOptions
from prunus.device import resolve_device
from prunus.errors import InputError
from prunus.graph import Inputs, hold_connections_
from prunus.meter import measure_cost
from prunus.plan import Record
from prunus.progress import Progress, Silent
from prunus.recipe.folder import (
    keep_record,
    open_run,
    require_out,
    require_there,
    with_way_on,
)
from prunus.recipe.formats import require_format
from prunus.recipe.measure import LOOKS_FILE, Look, environment, look
from prunus.recipe.saved import load_network, save_network
from prunus.recipe.subject import Subject, resolve_subject
from prunus.records import Cost, Environment, Score, Source
from prunus.train import FitResult, TrainConfig, fit

TRAINING_FILE = "training.json"


class TrainingRecord(Record):
    """What a training did, and what came out.

    Attributes:
        source: Of the network before the training.
        data: Its name.
        seed: Of the training.
        config: As asked for; ``fit`` says what was picked.
        fit: History, seconds, precision and layout.
        test: The only look at the test split; None where the caller looks itself.
        notes: What a reader must know.
        cost: Of the network.
        environment: Of the run.
    """

    source: Source
    data: str
    seed: int
    config: TrainConfig
    fit: FitResult
    test: Score | None
    cost: Cost
    environment: Environment
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """A trained network, on the CPU, in eval mode."""

    network: nn.Module
    record: TrainingRecord
    artifact_path: Path | None


def train_network(  # noqa: PLR0913  # all but three are options, by keyword only
    network: nn.Module | Source | str,
    config: TrainConfig,
    data: DataSplits | str,
    *,
    text: TextOptions | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    source: Source | None = None,
    example_inputs: Inputs | None = None,
) -> Trained:
    """Train a copy of a network, from the weights it has.

    Args:
        network: Not touched.
        config: Of the training.
        data: In three splits, or its name. The test split is looked at once, at the end.
        text: How texts are read, where the data is given by name.
        seed: Of data order and dropout.
        out: Run folder: checkpoint at every epoch, the artifact at the end.
        resume: Go on in ``out`` where a killed run stopped.
        device: ``"cpu"`` or ``"cuda"``.
        progress: Told of every step.
        source: Builds ``network`` where that is given as a module; without it no artifact is saved.
        example_inputs: A real batch; taken from the data where left out.

    Raises:
        PrunusError: Something given cannot be used.
    """
    require_out(out, resume=resume)
    if seed < 0:
        raise InputError(f"seed={seed} must be at least 0; give 0 or more")
    require_no_teacher(config)
    resolve_device(device)
    subject = resolve_subject(
        network, data, text=text, example_inputs=example_inputs, source=source, untrained=True
    )
    require_format(subject, config, device)
    if out is None:
        return train_into(None, subject, config, seed, device, progress or Silent())
    identity = {
        **subject.identity,
        "seed": seed,
        "device": device,
        "config": config.model_dump(),
    }
    with open_run(out, identity, resume=resume) as folder:
        return train_into(folder.path, subject, config, seed, device, progress or Silent())


def require_no_teacher(config: TrainConfig | None) -> None:
    """Refuse a distillation where the dense network is trained: nothing is there to teach it.

    Raises:
        InputError: One is asked for.
    """
    for name in ("distill_alpha", "distill_hidden", "distill_attention"):
        value = 0 if config is None else getattr(config, name)
        if value:
            raise InputError(
                f"{name}={value:g} needs a teacher, which a network that is trained on its own does "
                "not have; set it to 0, or distil in a recipe (its step train)"
            )


def train_into(
    folder: Path | None,
    subject: Subject,
    config: TrainConfig,
    seed: int,
    device: str,
    progress: Progress,
    *,
    test: bool = True,
) -> Trained:
    """Train the subject's network, or read it from a folder where that was done before."""
    artifact = None if folder is None else folder / "artifact"
    if folder is not None and artifact is not None and (folder / TRAINING_FILE).exists():
        with with_way_on(f"to train anew, delete {folder / TRAINING_FILE} and resume"):
            network, _ = load_network(artifact, subject.network)
            record = TrainingRecord.load(folder / TRAINING_FILE)
        return Trained(network, record, artifact if subject.rebuildable else None)
    network = copy.deepcopy(subject.network)
    hold_connections_(network)  # hooks do not survive the copy
    checkpoint = None if folder is None else folder / "training.ckpt"
    found = fit(
        network,
        subject.data.train,
        subject.data.search,
        config,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        device=device,
    )
    network.eval()
    seen = None
    if test:
        journal = None if folder is None else folder / LOOKS_FILE
        seen = look(network, subject.data, "after_training", device, journal)
    record = TrainingRecord(
        source=subject.source,
        data=subject.data.name,
        seed=seed,
        config=config,
        fit=found,
        test=None if seen is None else seen.score,
        cost=measure_cost(network, subject.one),
        environment=environment(device),
        notes=_notes(subject, seen),
    )
    if folder is not None and artifact is not None and checkpoint is not None:
        source = subject.source if subject.rebuildable else None
        require_there(folder)
        if not is_whole(artifact):
            shutil.rmtree(artifact, ignore_errors=True)  # what is damaged is refused in its place
        save_network(artifact, network, (), source, subject.inputs, subject.data.tokenizer)
        keep_record(record, folder / TRAINING_FILE)
        checkpoint.unlink(missing_ok=True)
    saved = artifact if subject.rebuildable else None
    return Trained(network, record, saved)


def _notes(subject: Subject, seen: Look | None) -> tuple[str, ...]:
    """What a reader must know of the data, and of the look at its test split."""
    told = [subject.data.note] if subject.data.note else []
    return (*told, *(() if seen is None else seen.notes))


def trained_first(
    subject: Subject,
    config: TrainConfig | None,
    folder: Path | None,
    device: str,
    progress: Progress,
) -> Subject:
    """The subject with its dense network trained, where that is asked for.

    The seed is fixed: runs of different seeds start from the same dense network.
    """
    if config is None:
        return subject
    place = None if folder is None else folder / "dense"
    done = train_into(place, subject, config, 0, device, progress, test=False)
    source = subject.source
    if done.artifact_path is not None:
        weights = str((done.artifact_path / "model.safetensors").resolve())
        source = source.model_copy(update={"weights": weights})
    # What it started from may have seen the search split; what it was trained on here has not.
    return replace(subject, network=done.network, source=source)
