"""What the commands compress, compare and train do."""

from collections.abc import Iterable
from pathlib import Path

import torch
import typer
from rich.console import Console

from prunus.cli.build import (
    make_compute,
    make_latency,
    method_steps,
    overridden,
    own_recipe,
    refuse_with_recipe,
    require_numbers,
    suite_steps,
    with_format,
)
from prunus.cli.given import (
    Cut,
    Scoring,
    Subject,
    Training,
    Where,
    read_seeds,
    require_sensible,
)
from prunus.cli.progress import RichProgress
from prunus.cli.rows import recipe_rows
from prunus.cli.show import say, show
from prunus.cli.source import data_name, make_source, text_options
from prunus.cli.training import make_train_first, make_training, require_training
from prunus.errors import InputError
from prunus.recipe import TraceOptions, compare, compress, load_recipe, train_network
from prunus.recipe.prepare import recipe_source
from prunus.recipe.recipe import as_recipe
from prunus.records import Comparison
from prunus.report.summary import failures, told_notes

PARTLY = 3
"""Exit code of a comparison some of whose rows failed; the report tells of the others."""


def run_compress(
    subject: Subject,
    method: str | None,
    cut: Cut,
    training: Training,
    where: Where,
    scoring: Scoring,
    *,
    recipe: Path | None,
    seed: int | None,
) -> None:
    """Compress by a recipe file, or by the recipe that the options make."""
    require_folder(where)
    require_training(training)
    require_numbers(cut, seed)
    if recipe is None:
        asked = own_recipe(method, cut, training, subject)
    else:
        refuse_with_recipe(method, cut, training)
        asked = load_recipe(recipe)
    asked = with_format(overridden(asked, subject, cut, seed), training)
    compute = make_compute(scoring, training)
    set_threads(where)
    with RichProgress(Console(stderr=True)) as progress:
        done = compress(
            None,
            asked,
            out=where.out,
            resume=where.resume,
            device=where.device,
            progress=progress,
            train_first=make_train_first(training, recipe_source(asked), asked.data),
            latency=make_latency(where),
            compute=compute,
        )
    record = done.record
    show(Comparison.alone(record), where.out)
    _print_notes(record.notes)
    if done.artifact_path is not None:
        say(f"artifact: {done.artifact_path}")
    else:
        say("nothing was saved: give --out to keep the network")


def run_compare(  # noqa: PLR0913  # all that the command line holds
    subject: Subject,
    methods: tuple[str, ...],
    cut: Cut,
    training: Training,
    where: Where,
    scoring: Scoring,
    *,
    recipes: tuple[Path, ...],
    suite: str | None,
    seeds: str,
) -> None:
    """Compare methods by name, a suite of them, and recipe files, and write the report."""
    require_folder(where)
    require_training(training)
    require_numbers(cut)
    source = make_source(subject)
    if suite is not None:
        steps = suite_steps(suite, methods, cut, training)
    elif recipes and not methods:
        refuse_with_recipe(None, cut, training)
        steps = {}
    else:
        steps = method_steps(methods, cut, training, subject)
    all_seeds = read_seeds(seeds)
    rows = recipe_rows(recipes, steps, subject, cut, all_seeds)
    steps |= {
        name: with_format(as_recipe(row), training, f"--recipe '{name}'").steps
        for name, row in rows.items()
    }
    compute = make_compute(scoring, training)
    set_threads(where)
    with RichProgress(Console(stderr=True)) as progress:
        comparison = compare(
            source,
            steps,
            data_name(subject) or "",
            text=text_options(subject),
            seeds=all_seeds,
            trace_options=TraceOptions(cut.ignore, **cut.widths),
            out=where.out,
            resume=where.resume,
            device=where.device,
            progress=progress,
            train_first=make_train_first(training, source, subject.data),
            latency=make_latency(where),
            compute=compute,
        )
    show(comparison, where.out)
    _print_notes(told_notes(comparison))
    if where.out is not None:
        say(f"artifacts: {where.out}/cells/*/artifact")
    if failures(comparison):
        raise typer.Exit(PARTLY)


def run_train(subject: Subject, training: Training, where: Where, *, seed: int) -> None:
    """Train, and save an artifact."""
    require_folder(where)
    set_threads(where)
    source = make_source(subject)
    config = make_training(training, source, subject.data)
    with RichProgress(Console(stderr=True)) as progress:
        done = train_network(
            source,
            config,
            data_name(subject) or "",
            text=text_options(subject),
            seed=seed,
            out=where.out,
            resume=where.resume,
            device=where.device,
            progress=progress,
        )
    record = done.record
    scores = f"top-1 {100 * record.fit.search_top1:.2f} % on search"
    if record.test is not None:
        name = "F1" if record.test.metric == "f1" else "top-1"
        scores += f", {name} {100 * record.test.value:.2f} % on test"
    say(
        f"{record.source.model} on {record.data}: {scores}, {record.fit.seconds:.1f} s "
        f"({record.fit.precision}, {record.fit.layout})"
    )
    _print_notes(record.notes)
    if done.artifact_path is not None:
        weights = done.artifact_path / "model.safetensors"
        say(f"artifact: {done.artifact_path}")
        say(f"weights for --weights: {weights}")
    else:
        say("nothing was saved: give --out to keep the network")


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def require_folder(where: Where) -> None:
    """Refuse to go on in a folder that is not named.

    Raises:
        InputError: ``--resume`` stands alone.
    """
    if where.resume and where.out is None:
        raise InputError("--resume is given without --out; name the folder to go on in (--out DIR)")


def set_threads(where: Where) -> None:
    """Use as many CPU threads as asked for.

    Raises:
        InputError: Fewer than one.
    """
    if where.threads is not None:
        if where.threads < 1:
            raise InputError(f"--threads {where.threads}: give 1 or more")
        require_sensible("--threads", where.threads)
        torch.set_num_threads(where.threads)
