"""The names of the zoo: build a network, and the normalization its inputs need."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from torch import nn

from prunus.errors import InputError
from prunus.plan import SEEDS, Record
from prunus.seeding import seeded
from prunus.zoo.cifar_resnet import CifarResNet
from prunus.zoo.digits_cnn import DigitsCNN
from prunus.zoo.mobilenet import MobileNetV2
from prunus.zoo.resnet import ResNet
from prunus.zoo.text import (
    BertSmallArguments,
    BertTinyArguments,
    BiLstm,
    BiLstmArguments,
    TextArguments,
    TextCnn,
    TextCnnArguments,
    make_bert,
)
from prunus.zoo.vgg import VGG16

Normalization = tuple[tuple[float, ...], tuple[float, ...]]

_IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR: Normalization = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_DIGITS: Normalization = ((0.3053,), (0.3760,))
_TOKENS: Normalization = ((), ())

_Arguments = TypeVar("_Arguments", bound=Record)


class BuildArguments(Record):
    """What every network for images can be asked for; ``TextArguments`` for those that read texts.

    ``width`` scales every channel count; ``in_channels`` is 3, or 1 for the digits; ``seed`` draws
    the initial weights, apart from the global random state.
    """

    num_classes: int = Field(default=10, ge=1)
    width: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    in_channels: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=SEEDS)


@dataclass(frozen=True)
class _Entry:
    make: Callable[[int, float, int], nn.Module]  # num_classes, width, in_channels
    normalization: Normalization
    in_channels: int = 3


@dataclass(frozen=True)
class _TextEntry:
    make: Callable[[Any], nn.Module]  # takes a record of ``arguments``
    arguments: type[TextArguments]


def _cifar_resnet(blocks: int) -> _Entry:
    # Its published checkpoints were trained with ImageNet's constants.
    return _Entry(lambda n, width, c: CifarResNet(blocks, n, width, c), _IMAGENET)


def _resnet(blocks: tuple[int, int, int, int], bottleneck: bool) -> _Entry:
    return _Entry(lambda n, width, c: ResNet(blocks, bottleneck, n, width, c), _CIFAR)


_ZOO: dict[str, _Entry] = {
    "digits_cnn": _Entry(DigitsCNN, _DIGITS, in_channels=1),
    "mobilenet_v2": _Entry(MobileNetV2, _CIFAR),
    "resnet18": _resnet((2, 2, 2, 2), bottleneck=False),
    "resnet20": _cifar_resnet(3),
    "resnet32": _cifar_resnet(5),
    "resnet44": _cifar_resnet(7),
    "resnet50": _resnet((3, 4, 6, 3), bottleneck=True),
    "resnet56": _cifar_resnet(9),
    "vgg16_bn": _Entry(VGG16, _CIFAR),
}


_TEXT_ZOO: dict[str, _TextEntry] = {
    "bert_small": _TextEntry(make_bert, BertSmallArguments),
    "bert_tiny": _TextEntry(make_bert, BertTinyArguments),
    "bilstm": _TextEntry(BiLstm, BiLstmArguments),
    "textcnn": _TextEntry(TextCnn, TextCnnArguments),
}


def zoo_names() -> tuple[str, ...]:
    """The names that ``build`` knows, sorted: networks for images and for texts (``is_text``)."""
    return tuple(sorted([*_ZOO, *_TEXT_ZOO]))


def is_text(model: str) -> bool:
    """Whether a name of the zoo takes token ids: ``input_ids`` and ``attention_mask`` by keyword.

    False for every other source: of an ``hf:`` network only its config tells.
    """
    return model in _TEXT_ZOO


def build(model: str, **arguments: Any) -> nn.Module:
    """Build a network of the zoo with seeded initial weights, in training mode.

    Args:
        model: One of ``zoo_names()``.
        arguments: For images ``num_classes``, ``width``, ``in_channels``, ``seed``; see
            ``BuildArguments``. For texts ``vocab_size``, which must be given, ``num_classes``,
            ``width``, ``seed`` and others; see ``prunus.zoo.text``.

    Raises:
        InputError: The name or an argument is unknown, a value is missing or out of range.
        MissingExtraError: The network is a BERT and transformers is not installed.

    >>> sum(p.numel() for p in build("resnet20").parameters())
    269722
    """
    if not isinstance(model, str):
        raise InputError(
            f"model is a {type(model).__name__}: give a name of the zoo as text; a Source is built by "
            "prunus.zoo.load_source"
        )
    text, entry = _TEXT_ZOO.get(model), _ZOO.get(model)
    if text is not None:
        read = _validated(model, text.arguments, arguments)
        with seeded(read.seed):
            return text.make(read)
    if entry is None:
        raise InputError(
            f"model '{model}' is unknown: use one of {', '.join(zoo_names())}; networks of hf:, timm:, "
            "torchvision: and files go by prunus.Source(model=...)"
        )
    asked = _validated(model, BuildArguments, arguments)
    with seeded(asked.seed):
        return entry.make(asked.num_classes, asked.width, asked.in_channels or entry.in_channels)


def _validated(model: str, record: type[_Arguments], given: dict[str, Any]) -> _Arguments:
    try:
        return record.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(record.model_fields)
        if first["type"] == "missing":
            raise InputError(
                f"argument '{where}' of model '{model}' is missing: give it; "
                f"the arguments are {known}"
            ) from error
        raise InputError(
            f"argument '{where}' of model '{model}' is {first['input']!r}: {first['msg']}; "
            f"the arguments are {known}"
        ) from error


def normalization(model: str) -> Normalization:
    """Mean and standard deviation per channel, for inputs in [0, 1], that a model was made for.

    The CIFAR and digits constants belong to the zoo's networks; every other source (``hf:``,
    ``timm:``, a file) is taken to need ImageNet's, which its own documentation may contradict.
    Networks that read token ids have no channels: both are empty.
    """
    if model in _TEXT_ZOO:
        return _TOKENS
    entry = _ZOO.get(model)
    return _IMAGENET if entry is None else entry.normalization
