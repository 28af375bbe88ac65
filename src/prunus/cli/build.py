"""From the options of the command line to the recipes, rows and settings they ask for."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from prunus.cli.given import (
    Cut,
    Scoring,
    Subject,
    Training,
    Where,
    read_pairs,
    require_sensible,
)
from prunus.cli.source import data_name, make_source, text_options
from prunus.cli.training import AFTER, make_finetune, refusal, refuse_idle
from prunus.compute import Compute
from prunus.errors import InputError
from prunus.method import Budget, make_method, method_class
from prunus.plan import SEEDS
from prunus.recipe import (
    SUITES,
    LatencyOptions,
    Recipe,
    Step,
    TextSuite,
    available_engines,
    make_recipe,
    standard_steps,
)
from prunus.recipe.pieces import takes_pieces
from prunus.recipe.recipe import as_recipe

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
_IN_A_RECIPE = "compare it through a recipe without a target (--recipe FILE.yaml)"
_SCORING = {
    "engine": "--engine",
    "workers": "--workers",
    "address": "--address",
    "memory_mb": "--memory-mb",
}


def require_numbers(cut: Cut, seed: int | None = None) -> None:
    """Refuse numbers out of range under the names of their options.

    Raises:
        InputError: One is.
    """
    least = {
        "--min-units": (cut.min_units, 1),
        "--round-to": (cut.round_to, 1),
        "--seed": (seed, 0),
    }
    for option, (value, smallest) in least.items():
        if value is not None and value < smallest:
            raise InputError(f"{option} {value}: give {smallest} or more")
    if seed is not None and seed >= SEEDS:
        raise InputError(f"--seed {seed}: give a number below 2^64")


def own_recipe(method: str | None, cut: Cut, training: Training, subject: Subject) -> Recipe:
    """Prune, recalibrate, train, as the options say."""
    if method is None:
        raise InputError("--method is missing; see prunus methods, or give --recipe FILE.yaml")
    options = read_pairs(cut.options, "--option")
    _require_target(method, cut.target, options, "leave --target out and set --option")
    refuse_idle(training)
    text = takes_pieces(make_source(subject), subject.data)
    steps = _steps(method, cut.target or "", options, training, text=text)
    return make_recipe({"steps": steps}, _HERE)


def _steps(
    method: str, target: str, options: Mapping[str, Any], training: Training, *, text: bool
) -> list[Any]:
    steps: list[Any] = list(standard_steps(method, target, options=options, text=text))
    return steps if training.epochs is None else [*steps, make_finetune(training, text=text)]


def _require_target(
    method: str, target: str | None, options: Mapping[str, Any], otherwise: str
) -> None:
    """Refuse a target of a quantity that the method does not lower, and none where it needs one.

    Args:
        method: Its name.
        target: As given.
        options: Of the method.
        otherwise: How to use the method without a target.

    Raises:
        InputError: There is no such method, or its target is missing or none of its own.
    """
    if target is None:
        if not make_method(method, options).sizes_itself:
            raise InputError("--target is missing; write one such as --target macs=0.5")
        return
    lowers, quantity = method_class(method).targets, Budget.parse(target).quantity
    if quantity not in lowers:
        known = " or ".join(f"{name}=" for name in sorted(lowers))
        also = f"give a --target of {known}, or " if known else ""
        raise InputError(
            f"--target {target}: method '{method}' does not lower {quantity}; {also}{otherwise}"
        )


def refuse_with_recipe(method: str | None, cut: Cut, training: Training) -> None:
    """Refuse options that a recipe file says itself.

    Raises:
        InputError: One is given.
    """
    given = {
        "--method": method,
        "--target": cut.target,
        "--option": cut.options,
        "--epochs": training.epochs,
        "--lr": training.lr,
        "--distill": training.distill,
        "--scratch-epochs": training.scratch_epochs,
    }
    if training.train_epochs is None:  # else they are of the training before
        given |= {"--batch-size": training.batch_size, "--optimizer": training.optimizer}
    for name, value in given.items():
        if value not in (None, ()):
            raise InputError(
                f"{name} is given beside --recipe, which says it; leave one of them out"
            )


def with_format(recipe: Recipe, training: Training, where: str = "the recipe") -> Recipe:
    """The recipe whose trainings have the number format and layout that the command line gives.

    Raises:
        InputError: One says another.
    """
    given = {"precision": training.precision, "layout": training.layout}
    for name, value in given.items():
        for train in recipe.trainings:
            says = getattr(train, name)
            if value is not None and says not in ("auto", value):
                raise InputError(
                    f"--{name} {value} is given, and a step train of {where} says {says}; leave one of "
                    "them out"
                )
    return recipe.pinned(training.precision or "auto", training.layout or "auto")


def overridden(recipe: Recipe, subject: Subject, cut: Cut, seed: int | None) -> Recipe:
    """The recipe with what the command line says of network, data and seed.

    Of settings and arguments it replaces those alone that it names; another network takes none of the
    recipe's arguments beside its own.
    """
    content = dict(recipe.model_dump())
    arguments = read_pairs(subject.arguments, "--arguments")
    if subject.model in (None, recipe.model):
        arguments = {**recipe.arguments, **arguments}
    text = text_options(subject, recipe.data)
    if text is not None and recipe.text is not None:
        text = recipe.text.overridden(text)
    given: dict[str, Any] = {
        "model": subject.model,
        "arguments": arguments,
        "weights": subject.weights,
        "data": data_name(subject, recipe.data),
        "text": text,
        "seed": seed,
        "ignore": cut.ignore or None,
        "min_units": cut.min_units,
        "round_to": cut.round_to,
    }
    content |= {name: value for name, value in given.items() if value is not None}
    return make_recipe(content, _HERE)


def method_steps(
    methods: tuple[str, ...],
    cut: Cut,
    training: Training,
    subject: Subject,
) -> dict[str, tuple[Step, ...]]:
    """Every method of the comparison with its steps; those of a demonstration where none is named."""
    names = methods or DEFAULT_METHODS
    refuse_idle(training)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--method '{twice}' is given twice; give each once")
    text = takes_pieces(make_source(subject), subject.data)
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
        _require_target(name, cut.target, options[name], _IN_A_RECIPE)
        steps = _steps(name, cut.target or "", options[name], training, text=text)
        content = {"steps": steps}
        found[name] = make_recipe(content, _HERE).steps
    return found


def suite_steps(
    suite: str, methods: tuple[str, ...], cut: Cut, training: Training
) -> dict[str, tuple[Step, ...]]:
    """Every row of a ready-made comparison with its steps.

    Raises:
        InputError: There is no such suite, or methods are given beside it, or settings that its rows
            do not take.
    """
    if suite not in SUITES:
        raise InputError(f"--suite '{suite}' is unknown; write --suite {' or '.join(SUITES)}")
    if methods:
        raise InputError(
            f"--method '{methods[0]}' is given beside --suite, which has its own; leave one out"
        )
    fixed = {
        "--target": cut.target,
        "--option": cut.options,
        "--distill": training.distill,
        "--scratch-epochs": training.scratch_epochs,
    }
    if training.train_epochs is None:  # else it is of the training before
        fixed["--optimizer"] = training.optimizer
    for name, value in fixed.items():
        if value not in (None, ()):
            raise InputError(
                f"{name} is given beside --suite, whose rows say it; leave it out, or add a row of your "
                "own (--recipe FILE.yaml)"
            )
    given = {
        "epochs": training.epochs,
        "lr": training.lr,
        "batch_size": training.batch_size,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    engines = available_engines()
    chains = tuple(engine for engine in engines if engine != "torch") or engines
    try:
        settings = {"engines": engines, "chain_engines": chains, **asked}
        rows = TextSuite.model_validate(settings).rows()  # whose error has the places of settings
    except ValidationError as error:
        raise refusal(error, AFTER) from error
    return {name: with_format(as_recipe(steps), training).steps for name, steps in rows.items()}


def make_compute(scoring: Scoring, training: Training) -> Compute:
    """Where and how candidates are scored, in the number format that trainings are told.

    Raises:
        InputError: Values cannot be used, or not with each other; names the options.
    """
    values = {name: getattr(scoring, name) for name in _SCORING}
    execution = {"precision": training.precision, "layout": training.layout}
    values |= {name: value for name, value in execution.items() if value is not None}
    if scoring.engine == "processes" or (scoring.engine == "ray" and scoring.address is None):
        require_sensible("--workers", scoring.workers)
    try:
        return Compute.model_validate(values)
    except ValidationError as error:
        raise refusal(error, _SCORING, f"--engine {scoring.engine}") from error


def make_latency(where: Where) -> LatencyOptions | None:
    """How latency is measured, if it is."""
    return LatencyOptions(threads=where.threads) if where.latency else None
