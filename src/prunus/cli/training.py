"""The trainings that the command line asks for: of the dense network, and after the cut."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from prunus.cli.given import Training
from prunus.errors import InputError
from prunus.plan import complaint
from prunus.recipe import Train
from prunus.recipe.pieces import takes_pieces
from prunus.records import Source
from prunus.train import TrainConfig

_BATCH = 128


@dataclass(frozen=True)
class _Rates:
    """Peak learning rates where none is given.

    Attributes:
        after: After a cut.
        first: Of a whole network, such as one with fresh weights.
        pretrained: Of a whole network of Hugging Face, whose weights are trained on.
    """

    after: float
    first: float
    pretrained: float


_RATES = {
    ("sgd", "images"): _Rates(after=0.02, first=0.1, pretrained=0.1),
    ("sgd", "texts"): _Rates(after=0.02, first=0.1, pretrained=0.01),
    # Above those of texts: in few epochs convolutions with batch norms learn little at these.
    ("adamw", "images"): _Rates(after=5e-4, first=2e-3, pretrained=5e-5),
    ("adamw", "texts"): _Rates(after=1e-4, first=5e-4, pretrained=5e-5),
}
AFTER = {
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

_Number = TypeVar("_Number", int, float)


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
        "--distill": training.distill or None,  # 0 asks for no teacher, and has none here
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


def make_finetune(training: Training, *, text: bool) -> Train:
    """The training after a cut.

    Args:
        training: As given.
        text: Whether the network reads texts: that, and the optimizer, decides what is not given.

    Raises:
        InputError: A value cannot be used; names the option.
    """
    rates = _rates(training, text=text)
    values: dict[str, Any] = {
        **_manner(training, text=text),
        "epochs": training.epochs,
        "lr": _given(training.lr, rates.after),
        "batch_size": _given(training.batch_size, _BATCH),
        "distill_alpha": _given(training.distill, 0.0),
    }
    if training.scratch_epochs is not None:
        values["scratch_epochs"] = training.scratch_epochs
    elif training.train_epochs is not None and training.epochs is not None:
        values["scratch_epochs"] = training.train_epochs + training.epochs
    if training.train_epochs is not None:
        values["scratch_lr"] = _given(training.train_lr, rates.first)
    return _train(values, AFTER)


def _optimizer(training: Training, *, text: bool) -> str:
    if training.optimizer is not None:
        return training.optimizer
    return "adamw" if text else "sgd"


def _rates(training: Training, *, text: bool) -> _Rates:
    """Those of optimizer and task. An optimizer that is not known is for the step to refuse."""
    task = "texts" if text else "images"
    return _RATES.get((_optimizer(training, text=text), task), _RATES["sgd", task])


def _manner(training: Training, *, text: bool) -> dict[str, Any]:
    """Optimizer and schedule: BERT's for texts."""
    optimizer = _optimizer(training, text=text)
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


def _train(values: Mapping[str, Any], options: Mapping[str, str]) -> Train:
    """The step, or the first problem in one line under the name of its option."""
    try:
        return Train.model_validate(dict(values))
    except ValidationError as error:
        raise refusal(error, options) from error


def refusal(error: ValidationError, options: Mapping[str, str], whole: str = "") -> InputError:
    """The first problem in one line under the option that sets the field.

    Args:
        error: With at least one problem.
        options: That set fields; a field without one is named as its option would be.
        whole: Named where the problem is one of several fields together.
    """
    first = error.errors()[0]
    message = complaint(first)
    if not first["loc"]:
        return InputError(f"{whole}: {message}" if whole else message)
    field = str(first["loc"][0])
    option = options.get(field, f"--{field.replace('_', '-')}")
    return InputError(f"{option} {first['input']}: {message}")


def make_train_first(
    training: Training, source: Source | None, data: str | None
) -> TrainConfig | None:
    """The training of the dense network, before everything else.

    Args:
        training: As given.
        source: Of the network, be it a recipe's; None: none is named, for ``compress`` to refuse.
        data: Its name.

    Raises:
        InputError: A value cannot be used; names the option.
    """
    if training.train_epochs is None:
        return None
    return _whole(training, source, data, training.train_epochs, training.train_lr, _BEFORE)


def make_training(training: Training, source: Source, data: str | None) -> TrainConfig:
    """The training of a network that is not cut.

    Raises:
        InputError: A value cannot be used; names the option.
    """
    return _whole(training, source, data, training.epochs, training.lr, AFTER)


def _whole(
    training: Training,
    source: Source | None,
    data: str | None,
    epochs: int | None,
    lr: float | None,
    options: Mapping[str, str],
) -> TrainConfig:
    """A training of the network as it is given, not of one that was cut."""
    text = source is not None and takes_pieces(source, data)
    rates = _rates(training, text=text)
    pretrained = source is not None and source.model.startswith("hf:")
    values = {
        **_manner(training, text=text),
        "epochs": epochs,
        "lr": _given(lr, rates.pretrained if pretrained else rates.first),
        "batch_size": _given(training.batch_size, _BATCH),
    }
    return _train(values, options).config(fresh=False)
