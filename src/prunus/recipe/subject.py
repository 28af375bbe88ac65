"""What a recipe works on: the dense network, where it comes from, its data and some real inputs."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.artifact import require_source
from prunus.artifact.manifest import TOKENIZER_FILE
from prunus.data import (
    DataSplits,
    Split,
    TextOptions,
    TextTokenizer,
    is_text_data,
    load_data,
    tensors_digest,
)
from prunus.errors import InputError, first_line
from prunus.graph import Inputs, check_network, hold_connections_
from prunus.graph.inputs import first_samples
from prunus.meter.size import require_storable
from prunus.records import Source
from prunus.sound import require_sound
from prunus.train import forward_logits
from prunus.train.checkpoint import form_digest, frozen_parameters
from prunus.zoo import (
    copied,
    find_weights,
    is_drawn,
    load_source,
    normalization,
    reads_text,
    zoo_names,
)
from prunus.zoo.own_code import code_sha256
from prunus.zoo.sources import INLINE, LIBRARIES, is_own_file, padding_number

CERTIFICATE_SAMPLES = 16
_PIECES, _MASK = "input_ids", "attention_mask"
_GRAY_DATA = ("digits",)
_LEAST_LENGTH = 4  # of texts that options allow


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
            "inputs": _shapes(self.inputs),
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
    if source is not None and (
        reads_text(source) or (is_own_file(source.model) and is_text_data(data))
    ):
        return load_data(data, text=text, tokenizer=_own_tokenizer(source))
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
    _require_fit(subject)
    if source is not None and isinstance(network, nn.Module):
        require_source(source, dense, inputs)
    return subject


def student_of(source: Source, dense: Subject) -> Subject:
    """A student on the data of the dense network.

    Raises:
        InputError: It cannot be built, or does not fit the data.
    """
    where = _completed(source, dense.data)
    _require_pieces(where, dense.data)
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
    _require_fit(student)
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


def stated(inputs: Inputs, samples: int, data: DataSplits) -> Inputs:
    """The samples that costs are stated for: texts all have the greatest length that data allows.

    Shorter ones are repeated until they are as long, so that no position is padding.
    """
    first = first_samples(inputs, samples)
    length = data.max_length
    if length is None or not isinstance(first, dict) or _PIECES not in first:
        return first
    ids = first[_PIECES]
    repeated = ids.repeat(1, -(-length // ids.shape[1]))[:, :length]
    return {**first, _PIECES: repeated, _MASK: torch.ones_like(repeated)}


def _shapes(inputs: Inputs) -> Any:
    """Shapes of example inputs without their samples: costs are stated for one of them."""
    if isinstance(inputs, Tensor):
        return " x ".join(map(str, inputs.shape[1:]))
    if isinstance(inputs, tuple | list):
        return [_shapes(value) for value in inputs if isinstance(value, Tensor)]
    return {name: _shapes(value) for name, value in inputs.items() if isinstance(value, Tensor)}


def _as_source(network: Source | str | None) -> Source | None:
    return Source(model=network) if isinstance(network, str) else network


def _require_name(data: object) -> None:
    """Refuse data that lies in no three splits, and is no name."""
    if data is not None and not isinstance(data, str):
        raise InputError(
            f"data is a {type(data).__name__}; give prunus.from_datasets(train, test), or a name such "
            "as imagefolder:DIR"
        )


def _own_tokenizer(source: Source) -> TextTokenizer | None:
    """What splits texts into the pieces that a network was trained on; None: it has none yet.

    It pads as the config of an ``hf:`` network says: some look for their last piece by that number.

    Raises:
        InputError: Weights bring none: other pieces would have the numbers of those they know.
    """
    name = source.model.removeprefix("hf:")
    named = source.model not in (name, INLINE)
    if source.weights is not None:
        beside = find_weights(source.weights).parent / TOKENIZER_FILE
        if beside.is_file():
            return _padded(TextTokenizer.read(beside), source)
        if not named:
            raise InputError(
                f"weights '{source.weights}' of '{source.model}' have no {TOKENIZER_FILE} beside "
                "them: put the one there that the network was trained with"
            )
    return _padded(TextTokenizer.load(name), source) if named else None


def _padded(pieces: TextTokenizer, source: Source) -> TextTokenizer:
    number = padding_number(source)
    return pieces if number is None else pieces.padding_with(number)


def _require_pieces(source: Source, data: DataSplits) -> None:
    """Refuse a trained student that splits texts in other pieces than its teacher's data does."""
    if data.tokenizer is None or not (is_own_file(source.model) or reads_text(source)):
        return
    own = _own_tokenizer(source)
    if own is not None and own.digest != data.tokenizer.digest:
        raise InputError(
            f"student '{source.model}' was trained on other tokens than '{data.name}' is "
            "split into: give one with the tokenizer of its teacher, or fresh weights (hf:config "
            "with model_type and sizes, or a network of the zoo)"
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


def _require_fit(subject: Subject) -> None:
    """Refuse a network that does not run on the data, texts of any length, or has too few outputs."""
    require_sound(subject.network)
    state = subject.network.state_dict()
    require_storable({name: value for name, value in state.items() if isinstance(value, Tensor)})
    batch = next(iter(subject.data.train.batches(min(2, len(subject.data.train)))))[0]
    model, data = subject.source.model, subject.data
    if data.tokenizer is not None and isinstance(batch, dict) and _PIECES in batch:
        ids = batch[_PIECES].clone()
        ids[0, 0] = data.tokenizer.vocab_size - 1  # a later text may hold it
        batch = {**batch, _PIECES: ids}
    full = stated(batch, 2, data)  # a later text may be as long
    probes = [batch, dict(full)] if isinstance(full, Mapping) else [batch]
    try:
        with torch.no_grad():
            classes = min(forward_logits(subject.network, probe).shape[1] for probe in probes)
    except InputError:
        raise
    except Exception as error:
        if isinstance(full, Mapping):
            _require_length(subject, dict(full))
        reason = first_line(error)
        raise InputError(
            f"model '{model}' does not run on data '{data.name}' (inputs {list(data.input_shape)}): "
            f"{reason}; give arguments or data that fit"
        ) from error
    if classes < data.num_classes:
        raise InputError(
            f"model '{model}' has {classes} outputs, data '{data.name}' {data.num_classes} classes; "
            f"build it with num_classes={data.num_classes}"
        )
    if isinstance(batch, dict):
        _require_padding(subject)


def _require_length(subject: Subject, batch: dict[str, Tensor]) -> None:
    """Refuse texts longer than a network has positions for, where shorter ones run."""
    longest, data = subject.data.max_length, subject.data
    if longest is None or _PIECES not in batch or _MASK not in batch:
        return

    def runs(length: int) -> bool:
        cut = {name: batch[name][:, :length] for name in (_PIECES, _MASK)}
        try:
            with torch.no_grad():
                forward_logits(subject.network, {**batch, **cut})
        except Exception:  # noqa: BLE001  # a user's forward may raise anything
            return False
        return True

    lower, upper = _LEAST_LENGTH, longest
    if lower >= upper or not runs(lower):
        return
    while upper - lower > 1:
        middle = (lower + upper) // 2
        lower, upper = (middle, upper) if runs(middle) else (lower, middle)
    if upper == longest and runs(longest):
        return  # something else failed
    raise InputError(
        f"model '{subject.source.model}' takes at most {lower} tokens, data '{data.name}' "
        f"has up to max_length={longest}; give --text max_length={lower} (or fewer), or build the "
        "network with more positions"
    )


def _require_padding(subject: Subject) -> None:
    """Refuse a network that takes another piece for padding than texts are padded with."""
    pieces = subject.data.tokenizer
    wanted = getattr(getattr(subject.network, "config", None), "pad_token_id", None)
    if pieces is not None and isinstance(wanted, int) and wanted != pieces.pad_id:
        raise InputError(
            f"model '{subject.source.model}' has pad_token_id={wanted} in its config, and texts of "
            f"'{subject.data.name}' are padded with token {pieces.pad_id}; build it with "
            f"pad_token_id={pieces.pad_id}"
        )
