"""What the commands compress, compare and train do."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from prunus.cli.given import Cut, Subject, Training, Where, read_pairs, read_seeds
from prunus.cli.progress import RichProgress
from prunus.cli.show import console, show
from prunus.errors import InputError
from prunus.recipe import (
    LatencyOptions,
    Recipe,
    Step,
    TraceOptions,
    Train,
    compare,
    compress,
    load_recipe,
    make_recipe,
    train_network,
)
from prunus.records import Comparison, Source
from prunus.train import TrainConfig

DEFAULT_METHODS = (
    "random",
    "l1",
    "l2-global",
    "bn-scale",
    "taylor",
    "random-search",
    "scratch",
)
_HERE = "command line"


def run_compress(
    subject: Subject,
    method: str | None,
    cut: Cut,
    training: Training,
    where: Where,
    *,
    recipe: Path | None,
    seed: int | None,
) -> None:
    """Compress by a recipe file, or by the recipe that the options make."""
    if recipe is None:
        asked = _own_recipe(method, cut, training)
    else:
        _refuse_with_recipe(method, cut, training)
        asked = load_recipe(recipe)
    asked = _overridden(asked, subject, cut, seed)
    set_threads(where)
    with RichProgress(Console(stderr=True)) as progress:
        done = compress(
            None,
            asked,
            out=where.out,
            resume=where.resume,
            device=where.device,
            progress=progress,
            train_first=_train_first(training),
            latency=_latency(where),
        )
    record = done.record
    title = f"{record.source.model} on {record.data}"
    show(Comparison(title=title, runs=(record,)), where.out)
    screen = console()
    for note in record.notes:
        screen.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    if done.artifact_path is not None:
        screen.print(f"artifact: {done.artifact_path}", soft_wrap=True, highlight=False)
    else:
        screen.print("nothing was saved: give --out to keep the network")


def run_compare(
    subject: Subject,
    methods: tuple[str, ...],
    cut: Cut,
    training: Training,
    where: Where,
    *,
    recipes: tuple[Path, ...],
    seeds: str,
) -> None:
    """Compare methods by name and recipe files, and write the report."""
    source = _source(subject)
    steps = _method_steps(methods, recipes, cut, training)
    set_threads(where)
    with RichProgress(Console(stderr=True)) as progress:
        comparison = compare(
            source,
            steps,
            subject.data or "",
            seeds=read_seeds(seeds),
            trace_options=TraceOptions(cut.ignore, cut.min_units, cut.round_to),
            out=where.out,
            resume=where.resume,
            device=where.device,
            progress=progress,
            train_first=_train_first(training),
            latency=_latency(where),
        )
    show(comparison, where.out)
    for note in comparison.runs[0].notes:
        console().print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    if where.out is not None:
        console().print(f"artifacts: {where.out}/cells/*/artifact", highlight=False)


def run_train(subject: Subject, training: Training, where: Where, *, seed: int) -> None:
    """Train, and save an artifact."""
    set_threads(where)
    config = _finetune(training).config(fresh=False)
    with RichProgress(Console(stderr=True)) as progress:
        done = train_network(
            _source(subject),
            config,
            subject.data or "",
            seed=seed,
            out=where.out,
            resume=where.resume,
            device=where.device,
            progress=progress,
        )
    record, screen = done.record, console()
    scores = f"top-1 {100 * record.fit.search_top1:.2f} % on search"
    if record.test is not None:
        scores += f", {100 * record.test.value:.2f} % on test"
    screen.print(
        f"{record.source.model} on {record.data}: {scores}, {record.fit.seconds:.1f} s "
        f"({record.fit.precision}, {record.fit.layout})",
        soft_wrap=True,
        highlight=False,
    )
    if done.artifact_path is not None:
        weights = done.artifact_path / "model.safetensors"
        screen.print(f"artifact: {done.artifact_path}", soft_wrap=True, highlight=False)
        screen.print(f"weights for --weights: {weights}", soft_wrap=True, highlight=False)
    else:
        screen.print("nothing was saved: give --out to keep the network")


def set_threads(where: Where) -> None:
    """Use as many CPU threads as asked for."""
    if where.threads is not None:
        torch.set_num_threads(where.threads)


def _source(subject: Subject) -> Source:
    if subject.model is None:
        raise InputError(
            "--model is missing; name a zoo network, hf:NAME, timm:NAME or FILE.py:FACTORY"
        )
    return Source(
        model=subject.model,
        arguments=read_pairs(subject.arguments, "--arguments"),
        weights=subject.weights,
    )


def _finetune(training: Training) -> Train:
    """The training after a cut; wrong values end in an error that names them."""
    values: dict[str, Any] = {
        "epochs": training.epochs,
        "lr": training.lr,
        "batch_size": training.batch_size,
        "distill_alpha": training.distill,
    }
    if training.scratch_epochs is not None:
        values["scratch_epochs"] = training.scratch_epochs
    elif training.train_epochs is not None and training.epochs is not None:
        values["scratch_epochs"] = training.train_epochs + training.epochs
    if training.train_epochs is not None:
        values["scratch_lr"] = training.train_lr
    step = make_recipe({"steps": [{"train": values}]}, _HERE).steps[0]
    if not isinstance(step, Train):
        raise TypeError(type(step).__name__)
    return step


def _train_first(training: Training) -> TrainConfig | None:
    """The training of the dense network, before everything else."""
    if training.train_epochs is None:
        return None
    first = replace(
        training,
        epochs=training.train_epochs,
        lr=training.train_lr,
        distill=0.0,
        train_epochs=None,
        scratch_epochs=None,
    )
    return _finetune(first).config(fresh=False)


def _own_recipe(method: str | None, cut: Cut, training: Training) -> Recipe:
    """Prune, recalibrate, train, as the options say."""
    if method is None:
        raise InputError("--method is missing; see prunus methods, or give --recipe FILE.yaml")
    if cut.target is None:
        raise InputError("--target is missing; write one such as --target macs=0.5")
    options = read_pairs(cut.options, "--option")
    return make_recipe({"steps": _steps(method, cut.target, options, training)}, _HERE)


def _steps(method: str, target: str, options: Mapping[str, Any], training: Training) -> list[Any]:
    steps: list[Any] = [
        {"prune": {"method": method, "target": target, "options": dict(options)}},
        {"recalibrate": {}},
    ]
    return steps if training.epochs is None else [*steps, _finetune(training)]


def _refuse_with_recipe(method: str | None, cut: Cut, training: Training) -> None:
    given = {
        "--method": method,
        "--target": cut.target,
        "--option": cut.options,
        "--epochs": training.epochs,
    }
    for name, value in given.items():
        if value:
            raise InputError(
                f"{name} is given beside --recipe, which says it; leave one of them out"
            )


def _overridden(recipe: Recipe, subject: Subject, cut: Cut, seed: int | None) -> Recipe:
    """The recipe with what the command line says of network, data and seed."""
    content = dict(recipe.model_dump())
    given: dict[str, Any] = {
        "model": subject.model,
        "arguments": read_pairs(subject.arguments, "--arguments") or None,
        "weights": subject.weights,
        "data": subject.data,
        "seed": seed,
        "ignore": cut.ignore or None,
        "min_units": cut.min_units if cut.min_units != 1 else None,
        "round_to": cut.round_to if cut.round_to != 1 else None,
    }
    content |= {name: value for name, value in given.items() if value is not None}
    return make_recipe(content, _HERE)


def _method_steps(
    methods: tuple[str, ...], recipes: tuple[Path, ...], cut: Cut, training: Training
) -> dict[str, tuple[Step, ...]]:
    """Every row of the comparison with its steps."""
    names = methods or (() if recipes else DEFAULT_METHODS)
    if names and cut.target is None:
        raise InputError("--target is missing; write one such as --target macs=0.5")
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in read_pairs(cut.options, "--option").items():
        name, dot, option = key.partition(".")
        if not dot or name not in options:
            raise InputError(
                f"--option '{key}' names none of the methods {', '.join(names)}; write "
                "--option METHOD.key=value"
            )
        options[name][option] = value
    found: dict[str, tuple[Step, ...]] = {}
    for name in names:
        content = {"steps": _steps(name, cut.target or "", options[name], training)}
        found[name] = make_recipe(content, _HERE).steps
    for path in recipes:
        recipe = load_recipe(path)
        name = recipe.name or path.stem
        if name in found:
            raise InputError(f"--recipe '{path}': the name '{name}' is taken; set its key name")
        found[name] = recipe.steps
    return found


def _latency(where: Where) -> LatencyOptions | None:
    return LatencyOptions(threads=where.threads) if where.latency else None
