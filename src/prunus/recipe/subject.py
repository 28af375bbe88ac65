"""What a recipe works on: the dense network, where it comes from, its data and some real inputs."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.artifact import require_source
from prunus.data import DataSplits, Split, TextOptions, is_text_data, load_data, tensors_digest
from prunus.errors import InputError
from prunus.graph import Inputs, check_network, hold_connections_
from prunus.recipe.fit import require_fit
from prunus.recipe.inputs import CERTIFICATE_SAMPLES, shapes, stated
from prunus.recipe.pieces import own_tokenizer, require_pieces, takes_pieces
from prunus.records import Source
from prunus.train.checkpoint import form_digest, frozen_parameters
from prunus.zoo import copied, is_drawn, load_source, normalization, reads_text, zoo_names
from prunus.zoo.hugging_face import INLINE
from prunus.zoo.own_code import code_sha256
from prunus.zoo.sources import LIBRARIES

_GRAY_DATA = ("digits",)


@dataclass(frozen=True)
class Subject:
    """The dense network and what it is measured on.

    Attributes:
        network: A copy of the given one, on the CPU, in eval mode.
        source: For the record.
        rebuildable: Whether ``source`` builds it again, so that an artifact can be written.
        data: In three splits.
        inputs: Real training inputs (at most 16 samples), or the caller's example.
        form: Digest of what the network computes beside its tensors, before it has run: some note
            sizes of their last input.
        is_student: Whether it takes the place of a dense network that teaches it.
        search_seen: Whether its weights may have been trained on the search split: not where they
            were drawn here, and are trained in this run.
    """

    network: nn.Module
    source: Source
    rebuildable: bool
    data: DataSplits
    inputs: Inputs
    form: str
    search_seen: bool
    is_student: bool = False

    @property
    def one(self) -> Inputs:
        """One sample: what costs are stated for."""
        return stated(self.inputs, 1, self.data)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the network in hex: of its form, too, as ReLU and sigmoid hold the same tensors."""
        return hashlib.sha256(f"{weights_digest(self.network)} {self.form}".encode()).hexdigest()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides a run's result, however its files are spelled and wherever they lie."""
        path, separator, factory = self.source.model.rpartition(":")
        arguments = self.source.model_dump(mode="json")["arguments"]
        source = {"model": self.source.model, "arguments": arguments}
        if separator and path.endswith(".py"):
            source["model"] = f"{Path(path).name}:{factory}"
            if Path(path).is_file():  # not where a module names it that was given beside it
                source["code"] = code_sha256(Path(path))
        elif path == "hf" and Path(factory).is_dir():
            source["model"] = f"hf:{Path(factory).resolve().name}"
        return {
            "source": source,
            "weights": weights_digest(self.network),
            "network form (its modules, their strides, dropout and other settings)": self.form,
            "frozen parameters": frozen_parameters(self.network),
            "data": self.data.name,
            "data samples": data_digest(self.data),
            "longest text": self.data.max_length,
            "inputs": shapes(self.inputs),
        }


def resolve_data(
    data: DataSplits | str | None, source: Source | None, text: TextOptions | None = None
) -> DataSplits:
    """Data sets by name, normalized as the model wants it where that is known.

    The split into train and search does not depend on the seed of a run: the dense network is the
    same for all seeds, and none may be tested on what another was trained on.

    Raises:
        InputError: No data is named, the name is unknown, or ``text`` is given beside loaded data.
        DataError: The data is missing or broken.
    """
    if isinstance(data, DataSplits):
        if text is not None:
            raise InputError(
                f"text is given beside data '{data.name}', which is loaded already: give it to "
                "prunus.load_data, or name the data"
            )
        return data
    _require_name(data)
    if not data:
        raise InputError(
            "data is missing; name images (digits, cifar10, cifar100, imagefolder:DIR) or texts "
            "(text:FILE, docstrings, sst2, sms, ru_toxic, hfdata:NAME)"
        )
    model = None if source is None else source.model
    if source is not None and takes_pieces(source, data):
        return load_data(data, text=text, tokenizer=own_tokenizer(source))
    if text is not None or is_text_data(data):
        return load_data(data, text=text)
    if model is None or not (model in zoo_names() or model.startswith(LIBRARIES)):
        return load_data(data)
    mean, std = normalization(model)
    if len(mean) != (1 if data in _GRAY_DATA else 3):
        return load_data(data)
    return load_data(data, mean=mean, std=std)


def resolve_subject(
    network: nn.Module | Source | str | None,
    data: DataSplits | str | None,
    *,
    text: TextOptions | None = None,
    example_inputs: Inputs | None = None,
    source: Source | None = None,
    untrained: bool = False,
) -> Subject:
    """Build or copy the network, load the data, and check that they fit.

    Args:
        network: A network, or the name or source of one.
        data: The data or its name.
        text: How texts are read, where the data is given by name.
        example_inputs: A real batch; taken from the training split where left out.
        source: Builds ``network`` where that is given as a module.
        untrained: Allow a zoo network without weights, as it will be trained first.

    Raises:
        InputError: Something is missing, network and data do not fit, or gradients are switched off.
    """
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise InputError(
            "gradients are switched off here, by torch.no_grad() or torch.inference_mode(): call this "
            "outside of it"
        )
    if network is not None and not isinstance(network, Source | str):
        check_network(network, "give a torch.nn.Module, or the name of a network")
    named = _as_source(network) if not isinstance(network, nn.Module) else source
    splits = resolve_data(data, named, text)
    drawn_here = False
    if isinstance(network, nn.Module):
        dense = copied(network, type(network).__qualname__).cpu().eval()
        hold_connections_(dense)  # hooks do not survive the copy
        where = named or Source(model=f"{type(network).__module__}.{type(network).__qualname__}")
    else:
        if named is None:
            raise InputError("model is missing; name a zoo network, hf:, timm: or FILE.py:FACTORY")
        where = _completed(named, splits)
        if where.model in zoo_names() and where.weights is None and not untrained:
            raise InputError(
                f"model '{where.model}' has no weights: name a checkpoint (--weights FILE), or train "
                "it first (--train-epochs N)"
            )
        dense = load_source(where)
        drawn_here = untrained and is_drawn(where, dense)
    inputs = example_inputs
    if inputs is None:
        inputs = next(iter(splits.train.batches(min(CERTIFICATE_SAMPLES, len(splits.train)))))[0]
    subject = Subject(
        network=dense,
        source=where,
        rebuildable=named is not None,
        data=splits,
        inputs=inputs,
        form=form_digest(dense),
        search_seen=not drawn_here,
    )
    require_fit(dense, where.model, splits)
    if source is not None and isinstance(network, nn.Module):
        require_source(source, dense, inputs)
    return subject


def student_of(source: Source, dense: Subject) -> Subject:
    """A student on the data of the dense network.

    Raises:
        InputError: It cannot be built, or does not fit the data.
    """
    where = _completed(source, dense.data)
    require_pieces(where, dense.data)
    network = load_source(where)
    student = Subject(
        network=network,
        source=where,
        rebuildable=True,
        data=dense.data,
        inputs=dense.inputs,
        form=form_digest(network),
        search_seen=not is_drawn(where, network),
        is_student=True,
    )
    require_fit(network, where.model, dense.data)
    return student


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of the state, in hex."""
    state = network.state_dict().items()
    return tensors_digest({name: held for name, held in state if isinstance(held, Tensor)})


def data_digest(data: DataSplits) -> str:
    """SHA-256 over the samples of all splits, in hex.

    Test samples are hashed like the others: that no network sees, and it counts as no look.
    """
    total = hashlib.sha256()
    splits: list[Split] = [data.train, data.search, data.test]
    for split in splits if data.unlabeled is None else [*splits, data.unlabeled]:
        total.update(f"{split.role}{len(split)}{split.digest}".encode())
    return total.hexdigest()


def _as_source(network: Source | str | None) -> Source | None:
    return Source(model=network) if isinstance(network, str) else network


def _require_name(data: object) -> None:
    """Refuse data that lies in no three splits, and is no name."""
    if data is not None and not isinstance(data, str):
        raise InputError(
            f"data is a {type(data).__name__}; give prunus.from_datasets(train, test), or a name such "
            "as imagefolder:DIR"
        )


def _completed(source: Source, data: DataSplits) -> Source:
    """The source with the data's classes and vocabulary, where none are asked for.

    Raises:
        InputError: It is a network of the zoo for texts, and the data holds none.
    """
    own = source.model in zoo_names()
    if own and reads_text(source) and data.tokenizer is None:
        raise InputError(
            f"model '{source.model}' reads texts, and data '{data.name}' are none; give texts "
            "(text:FILE.csv), or a network for such inputs"
        )
    given: dict[str, Any] = {}
    if own or reads_text(source):
        given["num_classes"] = data.num_classes
    if own and reads_text(source) and data.tokenizer is not None:
        given |= {"vocab_size": data.tokenizer.vocab_size, "pad_id": data.tokenizer.pad_id}
    if source.model == INLINE and data.tokenizer is not None:
        pieces = data.tokenizer
        given |= {"vocab_size": pieces.vocab_size, "pad_token_id": pieces.pad_id}
    return source.model_copy(update={"arguments": {**given, **source.arguments}})
