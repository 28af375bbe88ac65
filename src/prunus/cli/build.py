"""From the options of the command line to the sources, recipes and trainings they ask for."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from prunus.cli.given import (
    Cut,
    Scoring,
    Subject,
    Training,
    Where,
    read_image_size,
    read_pairs,
    require_sensible,
)
from prunus.compute import Compute
from prunus.data import TextOptions, is_text_data, with_image_size
from prunus.errors import InputError
from prunus.method import Budget, make_method, method_class
from prunus.recipe import (
    SUITES,
    LatencyOptions,
    Recipe,
    Step,
    TextSuite,
    Train,
    available_engines,
    make_recipe,
)
from prunus.records import Source
from prunus.train import TrainConfig
from prunus.zoo import reads_text as source_reads_text

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
_IMAGE_LR, _IMAGE_FIRST_LR = 0.02, 0.1  # SGD, after a cut and from scratch
_BATCH = 128
_TEXT_LR, _TEXT_FIRST_LR, _PRETRAINED_LR = 1e-4, 5e-4, 5e-5  # AdamW
_AFTER = {
    "epochs": "--epochs",
    "lr": "--lr",
    "batch_size": "--batch-size",
    "optimizer": "--optimizer",
    "distill_alpha": "--distill",
    "scratch_epochs": "--scratch-epochs",
    "scratch_lr": "--train-lr",
}
_BEFORE = {
    "epochs": "--train-epochs",
    "lr": "--train-lr",
    "batch_size": "--batch-size",
    "optimizer": "--optimizer",
}
"""Fields of a training step, and the options that set them."""
_SCORING = {
    "engine": "--engine",
    "workers": "--workers",
    "address": "--address",
    "memory_mb": "--memory-mb",
}


_Number = TypeVar("_Number", int, float)


def make_source(subject: Subject) -> Source:
    """The network that is asked for.

    Raises:
        InputError: None is.
    """
    if subject.model is None:
        raise InputError(
            "--model is missing; name a zoo network, hf:NAME, timm:NAME or FILE.py:FACTORY"
        )
    return Source(
        model=subject.model,
        arguments=read_pairs(subject.arguments, "--arguments"),
        weights=subject.weights,
    )


def data_name(subject: Subject, recipes: str | None = None) -> str | None:
    """The data that is asked for, or the recipe's, with the size of its images.

    Raises:
        InputError: A size is given for data that has its own.
    """
    name = subject.data if subject.data is not None else recipes
    if subject.image_size is None:
        return name
    if not name:
        raise InputError(
            f"--image-size {subject.image_size} is given without --data; name the images: "
            "--data imagefolder:DIR"
        )
    size = read_image_size(subject.image_size)
    try:
        return with_image_size(name, size)
    except InputError as error:
        raise InputError(f"--image-size {subject.image_size}: {error}") from error


def text_options(subject: Subject, recipes: str | None = None) -> TextOptions | None:
    """How texts are read, where something is said of it.

    Args:
        subject: As given.
        recipes: The recipe's data, where the command line names none.

    Raises:
        InputError: The data is no text, there is no such setting, or a value cannot be used.
    """
    given = read_pairs(subject.text, "--text")
    name = subject.data or recipes
    if given and name and not is_text_data(name):
        raise InputError(
            f"--text '{subject.text[0]}' is given, but data '{name}' is no set of texts; leave it out"
        )
    return TextOptions.from_pairs(given, "--text") if given else None


def require_training(training: Training) -> None:
    """Refuse values that cannot be used, also where no training is asked for that uses them.

    Raises:
        InputError: One is; names the option.
    """
    make_finetune(replace(training, epochs=1, train_epochs=1), text=False)
    if training.train_epochs is None and training.train_lr is not None:
        raise InputError(
            f"--train-lr {training.train_lr:g} has no effect without --train-epochs; give both, or "
            "leave it out"
        )


def refuse_idle(training: Training) -> None:
    """Refuse options of a training that no ``--epochs`` asks for.

    Raises:
        InputError: One is given.
    """
    if training.epochs is not None:
        return
    given: dict[str, Any] = {
        "--lr": training.lr,
        "--distill": training.distill or None,
        "--scratch-epochs": training.scratch_epochs,
    }
    if training.train_epochs is None:
        given |= {"--batch-size": training.batch_size, "--optimizer": training.optimizer}
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"{name} {value} has no effect without --epochs: nothing is trained after the cut; "
                "give --epochs N, or leave it out"
            )


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


def make_finetune(training: Training, *, text: bool) -> Train:
    """The training after a cut.

    Args:
        training: As given.
        text: Whether the network reads texts: that decides what is not given.

    Raises:
        InputError: A value cannot be used; names the option.
    """
    values: dict[str, Any] = {
        **_manner(training, text=text),
        "epochs": training.epochs,
        "lr": _given(training.lr, _TEXT_LR if text else _IMAGE_LR),
        "batch_size": _given(training.batch_size, _BATCH),
        "distill_alpha": training.distill,
    }
    if training.scratch_epochs is not None:
        values["scratch_epochs"] = training.scratch_epochs
    elif training.train_epochs is not None and training.epochs is not None:
        values["scratch_epochs"] = training.train_epochs + training.epochs
    if training.train_epochs is not None:
        values["scratch_lr"] = _given(training.train_lr, _first_lr(text=text, pretrained=False))
    return _train(values, _AFTER)


def _manner(training: Training, *, text: bool) -> dict[str, Any]:
    """Optimizer and schedule: BERT's for texts."""
    optimizer = training.optimizer
    if optimizer is None:
        optimizer = "adamw" if text else "sgd"
    manner: dict[str, Any] = {"optimizer": optimizer}
    execution = {"precision": training.precision, "layout": training.layout}
    manner |= {name: value for name, value in execution.items() if value is not None}
    if optimizer == "adamw":
        manner["weight_decay"] = 0.01
    if text:
        manner |= {"schedule": "linear", "warmup_fraction": 0.1, "grad_clip": 1.0}
        manner |= {"augment": False}
    return manner


def _given(value: _Number | None, default: _Number) -> _Number:
    """What was given, be it 0, which is for the step to refuse."""
    return default if value is None else value


def _first_lr(*, text: bool, pretrained: bool) -> float:
    if not text:
        return _IMAGE_FIRST_LR
    return _PRETRAINED_LR if pretrained else _TEXT_FIRST_LR


def _train(values: Mapping[str, Any], options: Mapping[str, str]) -> Train:
    """The step, or the first problem in one line under the name of its option."""
    try:
        return Train.model_validate(dict(values))
    except ValidationError as error:
        raise _refusal(error, options) from error


def _refusal(error: ValidationError, options: Mapping[str, str], whole: str = "") -> InputError:
    """The first problem in one line under the option that sets the field.

    Args:
        error: With at least one problem.
        options: That set fields; a field without one is named as its option would be.
        whole: Named where the problem is one of several fields together.
    """
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not first["loc"]:
        return InputError(f"{whole}: {message}" if whole else message)
    field = str(first["loc"][0])
    option = options.get(field, f"--{field.replace('_', '-')}")
    return InputError(f"{option} {first['input']}: {message}")


def make_train_first(training: Training, subject: Subject) -> TrainConfig | None:
    """The training of the dense network, before everything else.

    Raises:
        InputError: A value cannot be used; names the option.
    """
    if training.train_epochs is None:
        return None
    text = reads_text(subject)
    pretrained = (subject.model or "").startswith("hf:")
    values = {
        **_manner(training, text=text),
        "epochs": training.train_epochs,
        "lr": _given(training.train_lr, _first_lr(text=text, pretrained=pretrained)),
        "batch_size": _given(training.batch_size, _BATCH),
    }
    return _train(values, _BEFORE).config(fresh=False)


def make_training(training: Training, subject: Subject) -> TrainConfig:
    """The training of a network that is not cut.

    Raises:
        InputError: A value cannot be used; names the option.
    """
    text = reads_text(subject)
    pretrained = (subject.model or "").startswith("hf:")
    values = {
        **_manner(training, text=text),
        "epochs": training.epochs,
        "lr": _given(training.lr, _first_lr(text=text, pretrained=pretrained)),
        "batch_size": _given(training.batch_size, _BATCH),
    }
    return _train(values, _AFTER).config(fresh=False)


def reads_text(subject: Subject) -> bool:
    """Whether the network that is asked for takes pieces of texts."""
    return subject.model is not None and source_reads_text(make_source(subject))


def own_recipe(method: str | None, cut: Cut, training: Training, subject: Subject) -> Recipe:
    """Prune, recalibrate, train, as the options say."""
    if method is None:
        raise InputError("--method is missing; see prunus methods, or give --recipe FILE.yaml")
    options = read_pairs(cut.options, "--option")
    _require_target(method, cut.target, options, "leave --target out and set --option")
    refuse_idle(training)
    text = reads_text(subject)
    steps = _steps(method, cut.target or "", options, training, text=text)
    return make_recipe({"steps": steps}, _HERE)


def _steps(
    method: str, target: str, options: Mapping[str, Any], training: Training, *, text: bool
) -> list[Any]:
    prune = {"prune": {"method": method, "target": target, "options": dict(options)}}
    # Networks for texts normalize without statistics of batches.
    steps: list[Any] = [prune] if text else [prune, {"recalibrate": {}}]
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
        "--distill": training.distill or None,
        "--scratch-epochs": training.scratch_epochs,
    }
    if training.train_epochs is None:  # else they are of the training before
        given |= {"--batch-size": training.batch_size, "--optimizer": training.optimizer}
    for name, value in given.items():
        if value not in (None, ()):
            raise InputError(
                f"{name} is given beside --recipe, which says it; leave one of them out"
            )


def overridden(recipe: Recipe, subject: Subject, cut: Cut, seed: int | None) -> Recipe:
    """The recipe with what the command line says of network, data and seed."""
    content = dict(recipe.model_dump())
    given: dict[str, Any] = {
        "model": subject.model,
        "arguments": read_pairs(subject.arguments, "--arguments") or None,
        "weights": subject.weights,
        "data": data_name(subject, recipe.data),
        "text": text_options(subject, recipe.data),
        "seed": seed,
        "ignore": cut.ignore or None,
        "min_units": cut.min_units if cut.min_units != 1 else None,
        "round_to": cut.round_to if cut.round_to != 1 else None,
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
    text = reads_text(subject)
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
        "--distill": training.distill or None,
        "--scratch-epochs": training.scratch_epochs,
    }
    if training.train_epochs is None:
        fixed |= {"--precision": training.precision, "--layout": training.layout}
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
        return TextSuite(engines=engines, chain_engines=chains, **asked).rows()
    except ValidationError as error:
        raise _refusal(error, _AFTER) from error


def make_compute(scoring: Scoring, training: Training) -> Compute:
    """Where and how candidates are scored, in the number format that trainings are told.

    Raises:
        InputError: Values cannot be used, or not with each other; names the options.
    """
    values = {name: getattr(scoring, name) for name in _SCORING}
    execution = {"precision": training.precision, "layout": training.layout}
    values |= {name: value for name, value in execution.items() if value is not None}
    if scoring.engine == "processes":
        require_sensible("--workers", scoring.workers)
    try:
        return Compute.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, _SCORING, f"--engine {scoring.engine}") from error


def make_latency(where: Where) -> LatencyOptions | None:
    """How latency is measured, if it is."""
    return LatencyOptions(threads=where.threads) if where.latency else None
