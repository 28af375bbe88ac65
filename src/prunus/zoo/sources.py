"""Build the network that a ``Source`` names: zoo, Hugging Face, timm, torchvision, own file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.errors import InputError, first_line
from prunus.records import Source
from prunus.seeding import seeded
from prunus.zoo.catalog import build, is_text, zoo_names
from prunus.zoo.hugging_face import INLINE, classifies_texts, from_hugging_face
from prunus.zoo.libraries import from_timm, from_torchvision
from prunus.zoo.own_file import from_file
from prunus.zoo.weights import load_weights

LIBRARIES = ("hf:", "timm:", "torchvision:")
"""Whose networks come with trained weights that are fetched."""
_TRAINED = ("pretrained", "weights", "checkpoint")  # arguments by which factories load weights


def load_source(source: Source) -> nn.Module:
    """Build the network of a source, load its weights and set it to evaluation mode.

    ``source.model`` is a name of the zoo, ``hf:NAME`` or ``hf:FOLDER`` (a classifier of images or
    texts), ``timm:NAME``, ``torchvision:NAME`` or ``FILE.py:FACTORY``. ``source.arguments`` go
    to the constructor. The argument ``pretrained`` of hf, timm and torchvision says whether their
    own weights are fetched: by default where ``source.weights`` names none. ``hf:config`` builds a
    network with random weights from its arguments (``model_type`` and sizes); ``num_classes`` is the
    number of its labels. ``task`` ("image" or
    "text") settles an hf network that can do both. Weights not loaded are drawn from a fixed seed,
    and the global random state is left as it was.

    Raises:
        InputError: The network cannot be built, or the weights do not fit.
        MissingExtraError: The package that the source needs is not installed.
    """
    scheme, separator, name = source.model.partition(":")
    makers: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
        "hf": from_hugging_face,
        "timm": from_timm,
        "torchvision": from_torchvision,
    }
    arguments = dict(source.arguments)
    if separator and scheme in makers:
        if not name:
            raise InputError(f"model '{source.model}' names no network: write {scheme}:NAME")
        arguments.setdefault("pretrained", source.weights is None)
        with seeded(0):
            network = makers[scheme](name, arguments)
    elif is_own_file(source.model):
        with seeded(0):
            network = from_file(source.model, arguments)
    else:
        _require_zoo(source.model)
        try:
            network = build(source.model, **arguments)
        except (RuntimeError, MemoryError, OverflowError) as error:  # no memory holds it
            raise InputError(
                f"model '{source.model}' cannot be built with {arguments}: {first_line(error)}; give "
                "smaller numbers"
            ) from error
    if source.weights is not None:
        load_weights(network, source.weights)
    return network.eval()


def _require_zoo(model: str) -> None:
    """Refuse a name that no source knows.

    Raises:
        InputError: It is none of the zoo's.
    """
    if model in zoo_names():
        return
    if (Path(model) / "artifact.json").is_file():
        raise InputError(
            f"model '{model}' is an artifact, a network that was cut: read it with prunus.load"
        )
    raise InputError(
        f"model '{model}' is unknown: use one of {', '.join(zoo_names())}, or hf:NAME, timm:NAME, "
        "torchvision:NAME, file.py:factory"
    )


def without_weights(source: Source) -> Source:
    """The same constructor, spared from fetching weights that would be overwritten."""
    arguments = dict(source.arguments)
    if source.model.startswith(LIBRARIES):
        arguments["pretrained"] = False
    return source.model_copy(update={"weights": None, "arguments": arguments}, deep=True)


def is_own_file(model: str) -> bool:
    """Whether a model is named by its factory in a file: what it reads, its data alone tells."""
    return ".py:" in model or model.endswith(".py")


def is_drawn(source: Source, network: nn.Module) -> bool:
    """Whether a source without a file of weights draws them: another seed gives it others.

    Args:
        source: Builds the network, once more.
        network: As ``load_source`` built it.

    Parameters of one value, such as a norm's, tell nothing. A factory that sets a seed of its own
    counts as one that loads its weights.
    """
    fetched = source.model.startswith(LIBRARIES)
    asked = {"pretrained": fetched and source.model != INLINE, **source.arguments}
    if source.weights is not None or any(asked.get(name) for name in _TRAINED):
        return False
    if not is_own_file(source.model):
        return True
    with seeded(1):
        other = dict(from_file(source.model, dict(source.arguments)).named_parameters())
    told = [
        (name, parameter)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
        and parameter.numel()
        and not parameter.is_meta  # which holds no values, and is refused where they are needed
        and bool((parameter != parameter.flatten()[0]).any())
    ]
    return all(
        name in other and not torch.equal(parameter, other[name]) for name, parameter in told
    )


def reads_text(source: Source) -> bool:
    """Whether the network of a source takes pieces of texts: by its name in the zoo, or its config.

    Of a user's own file only running it would tell: it counts as not.

    Raises:
        InputError: The config of an ``hf:`` network cannot be found.
        MissingExtraError: transformers is not installed.
    """
    scheme, _, name = source.model.partition(":")
    if scheme != "hf":
        return is_text(source.model)
    return classifies_texts(name, source.arguments)
