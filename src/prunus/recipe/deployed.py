"""The step ``deploy``: files for an engine, measured in a process that knows nothing but the files."""

import copy
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data import Inputs, Split
from prunus.errors import InputError, PrunusError
from prunus.graph import Inputs as ExampleInputs
from prunus.meter import measure_latencies
from prunus.meter.latency import Predict
from prunus.quantize import (
    Deployed,
    Deployment,
    FreshRun,
    deploy,
    load_deployed,
    parity,
    read_deployed,
    run_fresh,
)
from prunus.recipe.actions import Action
from prunus.recipe.measure import (
    LatencyOptions,
    Timed,
    look_by,
    phase,
    samples_in,
    timed_as_asked,
)
from prunus.recipe.state import Outcome, State, Tools
from prunus.records import DeployedRow, Latency

_BATCH = 32
_PARITY_BATCHES = 8
_FLOAT32_LIMIT = 1e-2  # of the largest logit: far above rounding


def deploy_state(
    action: Action, asked: Deployment, state: State, tools: Tools
) -> tuple[State, Outcome]:
    """Write the network for its engine, and measure it there.

    The test split is read once, for the look; its samples go to the other process as tensors.
    """
    with _folder(tools.steps, f"{action.name}.{asked.engine}") as folder:
        shutil.rmtree(folder, ignore_errors=True)  # damaged: the step is not done, or to be redone
        begin = time.perf_counter()
        with phase(tools.progress, f"deploy to {asked.engine}"):
            written = _write(state.network, folder, asked, state, tools)
        seconds = time.perf_counter() - begin
        runs: list[FreshRun] = []

        def examine() -> Tensor:
            positions: list[Tensor] = []
            batches = _by_length(state.data.test, positions)
            runs.append(run_fresh(folder, batches, threads=torch.get_num_threads()))
            return runs[0].logits[torch.cat(positions).argsort()]  # in the order of the split

        with phase(tools.progress, f"evaluate in {asked.engine}"):
            seen = look_by(examine, state.data, "deployed", tools.journal)
            session = load_deployed(folder, threads=torch.get_num_threads())
            batches = islice(state.data.search.batches(_BATCH), _PARITY_BATCHES)
            near = parity(state.network, session, [inputs for inputs, _ in batches])
        notes = written.notes
        if asked.is_float32 and near.relative_difference > _FLOAT32_LIMIT:
            difference = f"{near.relative_difference:.1%} of the largest"
            notes += (
                f"{asked.engine}: in float32 its answers differ by {difference}: take another",
            )
        row = DeployedRow(
            engine=asked.engine,
            weights=asked.weights,
            embeddings=asked.embeddings,
            calibration=asked.calibration,
            size_bytes=written.size_bytes,
            load_seconds=runs[0].seconds_load,
            prediction_agreement=near.agreement,
            logit_difference=near.relative_difference,
            notes=notes,
        )
        if tools.latency is not None:
            with phase(tools.progress, f"time in {asked.engine}"):
                row = _timed(row, folder, state, tools, tools.latency)
    outcome = Outcome(
        path=action.path,
        fresh=state.fresh,
        student=state.origin.source if state.origin.is_student else None,
        seconds={"deploy": seconds},
        look=seen,
        deployed=row,
        notes=tuple(f"{action.path}: {note}" for note in row.notes),
    )
    return replace(state, deployed=None if tools.steps is None else folder), outcome


def _by_length(split: Split, positions: list[Tensor]) -> Iterator[Inputs]:
    """Batches with little padding; where their samples stand in the split is added to ``positions``."""
    for some, inputs, _ in split.placed_batches(_BATCH, by_length=True):
        positions.append(some)
        yield inputs


def _write(
    network: nn.Module, folder: Path, asked: Deployment, state: State, tools: Tools
) -> Deployed:
    """Write a network; ranges and outliers are measured on training samples, every class in proportion."""
    calibration: list[Inputs] = []
    if asked.reads_samples:
        train = state.data.train
        drawn = train.subset(min(asked.calibration_samples, len(train)), tools.recipe.seed)
        calibration = [inputs for inputs, _ in drawn.batches(_BATCH)]
    return deploy(
        network,
        folder,
        asked,
        inputs=plain_inputs(state.inputs),
        calibration=calibration,
        source=state.origin.source if state.origin.rebuildable else None,
        plans=state.plans,
        dynamic_length=state.data.max_length is not None,
        progress=tools.progress,
    )


def plain_inputs(inputs: ExampleInputs) -> Inputs:
    """Inputs as data gives them: a tensor, or tensors by name.

    Raises:
        InputError: They are positional.
    """
    if isinstance(inputs, tuple):
        if len(inputs) == 1 and isinstance(inputs[0], Tensor):
            return inputs[0]
        raise InputError("example_inputs is a tuple: to deploy, give a tensor, or tensors by name")
    return inputs if isinstance(inputs, Tensor) else dict(inputs)


def _timed(
    row: DeployedRow, folder: Path, state: State, tools: Tools, options: LatencyOptions
) -> DeployedRow:
    """The deployed network, the dense one on the same engine and in PyTorch, timed in turns."""
    threads = options.threads or torch.get_num_threads()
    subject = tools.subject
    dense = copy.deepcopy(subject.network).cpu().eval()
    mine = Timed(state.network, state.inputs, state.data).batch(options.batch, "cpu")
    theirs = Timed(dense, subject.inputs, subject.data).batch(options.batch, "cpu")
    named: dict[str, tuple[Predict, Any]] = {
        "dense": (dense, theirs),
        "deployed": (load_deployed(folder, threads=threads), mine),
    }
    engines = {"dense": "torch", "deployed": row.engine, "float32": row.engine}
    if row.engine != "torch":
        with _folder(tools.engines, f"{row.engine}-{subject.digest[:12]}") as place:
            if not _is_whole(place):
                shutil.rmtree(place, ignore_errors=True)
                _write(dense, place, Deployment(engine=row.engine), State.begin(subject), tools)
            named["float32"] = (load_deployed(place, threads=threads), theirs)
    found: dict[str, Latency] = measure_latencies(
        named,
        batch=samples_in(theirs),
        warmup=options.warmup,
        repeats=options.repeats,
        threads=threads,
        engine=engines,
    )
    return row.model_copy(
        update={
            "latency": found["deployed"],
            "own_float32_latency": found.get("float32", found["dense"]),
            "dense_latency": found["dense"],
        }
    )


def timed_later(outcome: Outcome, state: State, tools: Tools) -> Outcome:
    """The outcome of a deployment with its latency, where that was switched off or measured otherwise."""
    row, folder, options = outcome.deployed, state.deployed, tools.latency
    if row is None or folder is None or options is None:
        return outcome
    if timed_as_asked(row.latency, options, Timed(state.network, state.inputs, state.data)):
        return outcome
    with phase(tools.progress, f"time in {row.engine}"):
        return outcome.model_copy(update={"deployed": _timed(row, folder, state, tools, options)})


def _is_whole(folder: Path) -> bool:
    """Whether a deployed network is there, as it was written."""
    try:
        read_deployed(folder)
    except PrunusError:
        return False
    return True


@contextmanager
def _folder(parent: Path | None, name: str) -> Iterator[Path]:
    """A folder that stays where there is a place for it, else one that goes away."""
    if parent is not None:
        yield parent / name
        return
    with tempfile.TemporaryDirectory() as place:
        yield Path(place) / name
