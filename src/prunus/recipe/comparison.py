"""``compare``: several methods on the same network, data and target, each with several seeds."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from prunus.compute import Compute
from prunus.data import DataSplits, TextOptions
from prunus.device import resolve_device
from prunus.errors import InputError, PrunusError, StorageError
from prunus.graph import Inputs
from prunus.progress import Progress, Silent
from prunus.recipe.actions import lay_out
from prunus.recipe.dense import require_no_teacher, trained_first
from prunus.recipe.disk import full_disk_told
from prunus.recipe.engines import require_engines
from prunus.recipe.folder import (
    RUN_FILE,
    RunFolder,
    keep_record,
    require_alike,
    require_out,
    require_resumable,
    saved_weights,
)
from prunus.recipe.formats import require_format
from prunus.recipe.measure import LatencyOptions
from prunus.recipe.pieces import takes_pieces
from prunus.recipe.prepare import (
    Baseline,
    Settings,
    checked_trace,
    fix_threads,
    measure_dense,
    open_folder,
    pin,
    run_identity,
)
from prunus.recipe.recipe import Recipe, make_recipe
from prunus.recipe.resume import Donor
from prunus.recipe.run import RECORD_FILE, run_recipe, whole_record
from prunus.recipe.steps import Prune, Recalibrate, Step, Train
from prunus.recipe.subject import Subject, resolve_subject
from prunus.records import Comparison, RunRecord, Source
from prunus.train import TrainConfig

COMPARISON_FILE = "comparison.json"
_CELLS = "cells"
_LONGEST = 255
"""Bytes of a folder's name that file systems take: what fits has the name that it always had."""
_CUT = 100
"""Letters that are left of a name that does not fit."""


@dataclass(frozen=True)
class TraceOptions:
    """Which groups of the network may be cut, and how far: the same for all methods."""

    ignore: tuple[str, ...] = ()
    min_units: int = 1
    round_to: int = 1


@dataclass(frozen=True)
class Cell:
    """One method with one seed; ``folder`` is the name of its run folder."""

    name: str
    recipe: Recipe
    folder: str


def standard_steps(
    method: str,
    target: str,
    *,
    options: Mapping[str, Any] | None = None,
    text: bool = False,
    finetune: Train | None = None,
) -> tuple[Step, ...]:
    """Prune, recalibrate, and fine-tune where that is asked for: what a method's bare name means.

    Networks for texts are not recalibrated: they normalize without statistics of batches.
    """
    steps: list[Step] = [Prune(method=method, target=target, options=dict(options or {}))]
    if not text:
        steps.append(Recalibrate())
    return tuple(steps) if finetune is None else (*steps, finetune)


def compare(  # noqa: PLR0913  # all but four are options, by keyword only
    network: nn.Module | Source | str,
    methods: Sequence[str] | Mapping[str, Sequence[Step]],
    data: DataSplits | str,
    target: str = "",
    *,
    text: TextOptions | None = None,
    seeds: Sequence[int] = (0,),
    finetune: Train | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    trace_options: TraceOptions = TraceOptions(),  # frozen
    title: str = "",
    example_inputs: Inputs | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    source: Source | None = None,
    train_first: TrainConfig | None = None,
    latency: LatencyOptions | None = LatencyOptions(),  # noqa: B008  # frozen
    compute: Compute = Compute(),  # noqa: B008  # frozen
) -> Comparison:
    """Run every method with every seed from the same dense network, which is measured once.

    Rows that begin with the same steps share them: with ``out`` each is computed once. A cell that fails is told in the notes of the first run, and does not stop the others.

    Args:
        network: As for ``compress``; not touched.
        methods: Names (``standard_steps`` each), or a name for each list of steps.
        data: In three splits, or its name.
        target: Budget of the methods given by name, such as ``macs=0.5``.
        text: How texts are read, where the data is given by name.
        seeds: Of search, data order and fine-tuning.
        finetune: Training after the cut, of the methods given by name.
        options: Of the methods given by name.
        trace_options: What may be cut.
        title: Of the report.
        example_inputs: A real batch for tracing and certificates.
        out: Folder: ``comparison.json``, and a run folder in ``cells`` for each method and seed.
        resume: Go on in ``out``. Methods and seeds may be added to a comparison: rows that are done
            there stay in it, also where they are not asked for again.
        device: ``"cpu"`` or ``"cuda"``.
        progress: Told of everything.
        source: Builds ``network`` where that is given as a module.
        train_first: Train the dense network first, once, from the weights it has.
        latency: How latency is measured; None: not at all.
        compute: Where and how searches score their candidates; as for ``compress``.

    Raises:
        InputError: Something given cannot be used; the message names it.
        PrunusError: No cell succeeded: the first one's error.
    """
    require_out(out, resume=resume)
    settings = Settings(device, progress or Silent(), latency, compute)
    built_by = source if isinstance(network, nn.Module) else network
    if isinstance(built_by, str):
        built_by = Source(model=built_by)
    cells = make_cells(
        methods,
        target,
        seeds,
        finetune,
        options or {},
        trace_options,
        text=isinstance(built_by, Source) and takes_pieces(built_by, data),
    )
    require_no_teacher(train_first)
    resolve_device(device)
    subject = resolve_subject(
        network,
        data,
        text=text,
        example_inputs=example_inputs,
        source=source,
        untrained=train_first is not None,
    )
    place = None if out is None else Path(out)
    runs = _compare(cells, subject, place, settings, resume=resume, train_first=train_first)
    name = title or f"{subject.source.model} on {subject.data.name}"
    comparison = Comparison(title=name, runs=runs)
    if place is not None:
        with full_disk_told(place):
            keep_record(comparison, place / COMPARISON_FILE)
    return comparison


def _compare(
    cells: Sequence[Cell],
    subject: Subject,
    out: Path | None,
    settings: Settings,
    *,
    resume: bool,
    train_first: TrainConfig | None,
) -> tuple[RunRecord, ...]:
    """Train and measure the dense network, run all cells."""
    if train_first is not None:
        require_format(subject, train_first, settings.device)
    runs_of = [lay_out(cell.recipe) for cell in cells]
    require_engines(subject, runs_of, settings.progress, trains=train_first is not None)
    actions = [action for run in runs_of for action in run]
    found = checked_trace(subject, cells[0].recipe, runs_of, settings)
    frame = cells[0].recipe.model_copy(update={"name": "", "steps": (), "seed": 0})
    shared = run_identity(subject, frame, settings, train_first)
    with open_folder(out, {"kind": "comparison", **shared}, resume=resume) as folder:
        settings = fix_threads(settings, actions, folder)
        if folder is not None:
            _require_alike(folder, cells, subject, settings)
        subject = trained_first(subject, train_first, out, settings.device, settings.progress)
        pinned = pin([cell.recipe for cell in cells], subject, folder, settings.device)
        cells = [replace(c, recipe=recipe) for c, recipe in zip(cells, pinned, strict=True)]
        if out is not None:  # what is refused later is refused after hours
            for cell in cells:
                identity = run_identity(subject, cell.recipe, settings, None)
                require_resumable(_place(out, cell), identity)
        baseline = measure_dense(subject, found, out, settings)
        runs, failures = _run_cells(cells, baseline, folder, settings)
        if not runs:
            raise failures[0][1]
        notes = tuple(f"{cell} failed: {error}" for cell, error in failures)
        runs[0] = runs[0].model_copy(update={"notes": (*runs[0].notes, *notes)})
        runs = [_relocated(run, subject) for run in runs]
        earlier = {} if out is None else _earlier(out, cells)
        return (*runs, *(_relocated(run, subject, place) for place, run in earlier.items()))


def _earlier(out: Path, cells: Sequence[Cell]) -> dict[Path, RunRecord]:
    """Rows of a comparison that were done before and are not asked for now: they cost what they cost.

    Returns:
        The record of each by its folder.
    """
    asked = {_place(out, cell) for cell in cells}
    files = sorted((out / _CELLS).glob(f"*/{RECORD_FILE}"))
    found = {file.parent: whole_record(file) for file in files if file.parent not in asked}
    return {place: record for place, record in found.items() if record is not None}


def _relocated(run: RunRecord, subject: Subject, place: Path | None = None) -> RunRecord:
    """The record with the dense network named by where it lies now: files and folders may be moved.

    A report compares these names, and would take one network for several.

    Args:
        run: Kept from before, maybe.
        subject: The dense network of all rows.
        place: Of a run that was not opened now, which may be of another network; else None.
    """
    if place is not None and saved_weights(place) != subject.identity["weights"]:
        return run
    source, recipe = subject.source, run.recipe
    if recipe.get("model") is not None:
        recipe = {**recipe, "model": source.model, "weights": source.weights}
    return run.model_copy(update={"source": source, "recipe": recipe})


def _require_alike(
    folder: RunFolder, cells: Sequence[Cell], subject: Subject, settings: Settings
) -> None:
    """Refuse what is asked of a row otherwise than before, while nothing is trained or measured yet.

    The seeds of a row are one mean; the identity of a comparison leaves the steps out, for rows may
    be added.

    Raises:
        InputError: A cell, or another seed of its row that stays in the comparison, was done otherwise.
    """
    kept, picked = _earlier(folder.path, cells), folder.file.execution
    for cell in cells:
        recipe = cell.recipe if picked is None else cell.recipe.pinned(**picked)
        identity = run_identity(subject, recipe, settings, None)
        own = _place(folder.path, cell)
        if (own / RUN_FILE).exists():
            require_alike(own, identity, same_seed=True)
        for place, record in kept.items():
            if record.method == cell.name:
                require_alike(place, identity, same_seed=False)


def make_cells(
    methods: Sequence[str] | Mapping[str, Sequence[Step]],
    target: str,
    seeds: Sequence[int],
    finetune: Train | None,
    options: Mapping[str, Mapping[str, Any]],
    trace_options: TraceOptions,
    *,
    text: bool = False,
) -> list[Cell]:
    """Every method with every seed, checked. ``text``: whether the network is known to read texts.

    Raises:
        InputError: A method, a target, an option or a seed cannot be used.
    """
    _require_lists(methods, seeds)
    unused = [name for name in options if name not in methods]
    if unused:
        raise InputError(f"options are given for '{unused[0]}', which is not among the methods")
    named: dict[str, Sequence[Step]] = {}
    for name in methods:
        if isinstance(methods, Mapping):
            named[name] = methods[name]
            continue
        if not target:
            raise InputError("target is missing; write one such as macs=0.5")
        own = options.get(name, {})
        named[name] = standard_steps(name, target, options=own, text=text, finetune=finetune)
    shared = {
        "ignore": trace_options.ignore,
        "min_units": trace_options.min_units,
        "round_to": trace_options.round_to,
    }
    cells, folders = [], _folders(named)
    for name, steps in named.items():
        _require_own_name(name)
        for seed in seeds:
            content = {**shared, "name": name, "seed": seed, "steps": tuple(steps)}
            recipe = make_recipe(content, f"method '{name}'")
            cells.append(Cell(name, recipe, _folder(name, folders[name], seed)))
    return cells


def _folders(names: Iterable[str]) -> dict[str, str]:
    """What the folders of each row begin with: its name in plain letters, no two alike.

    Letters beyond ASCII leave nothing of a name, which then has its digest. Of ASCII names that
    differ in what is replaced alone, the first keeps the plain form: rows are added behind those
    that have folders already.
    """
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        if not name.isascii() or plain in found.values():
            plain += f"-{_digest(name)}"
        found[name] = plain
    return found


def _folder(name: str, plain: str, seed: int) -> str:
    """The folder of a row's seed; a name that no file system takes is cut, and has its digest.

    Args:
        name: Of the row.
        plain: What its folders begin with.
        seed: Of the cell.
    """
    whole = f"{plain}-seed{seed}"
    if len(whole) <= _LONGEST:
        return whole
    return f"{plain[:_CUT]}-{_digest(name)}-seed{seed}"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _require_own_name(name: str) -> None:
    """Refuse what reports call the dense network, ``dense (ENGINE ...)`` where several engines ran it."""
    if name == "dense" or (name.startswith("dense (") and name.endswith(")")):
        raise InputError(
            f"a row is named '{name}', as the dense network is in every report; give it another name "
            "(a recipe file: its key name)"
        )


def _require_lists(methods: object, seeds: object) -> None:
    """Refuse what lists no methods or no seeds, or one of them twice."""
    if isinstance(methods, str) or not methods or not isinstance(methods, Iterable):
        raise InputError(f"methods is {methods!r}; give a list of names, or names with steps")
    if not all(isinstance(name, str) for name in methods):
        raise InputError(
            "methods is a list of steps; give every list of steps a name: {'mine': [step, step]}"
        )
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise InputError(f"seeds is {seeds!r}; give a list of them: [0, 1, 2]")
    for what, values in (("methods", list(methods)), ("seeds", list(seeds))):
        if not values or len(set(values)) < len(values):
            raise InputError(f"{what} is {values}; give at least one, each once")


def _run_cells(
    cells: Sequence[Cell], baseline: Baseline, folder: RunFolder | None, settings: Settings
) -> tuple[list[RunRecord], list[tuple[str, PrunusError]]]:
    runs: list[RunRecord] = []
    failures: list[tuple[str, PrunusError]] = []
    donors: list[Donor] = []
    progress = settings.progress
    if folder is not None:
        settings = replace(settings, shared=folder.path)
    progress.start("compare", len(cells))
    try:
        for cell in cells:
            place = None if folder is None else _place(folder.path, cell)
            identity = run_identity(baseline.subject, cell.recipe, settings, None)
            others = tuple(donors)
            try:
                with open_folder(place, identity, resume=True) as own:
                    if place is not None:  # a cell that fails has finished steps, too
                        donors.append(Donor(cell.name, cell.recipe, place / "steps"))
                    done = run_recipe(cell.recipe, baseline, own, settings, donors=others)
            except StorageError:  # the next cell's results would be lost, too
                raise
            except PrunusError as error:
                failures.append((f"{cell.name} (seed {cell.recipe.seed})", error))
            else:
                runs.append(done.record)
            progress.advance()
    finally:
        progress.finish()
    return runs, failures


def _place(out: Path, cell: Cell) -> Path:
    """The run folder of a cell."""
    return out / _CELLS / cell.folder
