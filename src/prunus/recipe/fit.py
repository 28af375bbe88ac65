"""Whether a network and its data fit: refused before any long compute."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.data import DataSplits, Inputs
from prunus.errors import InputError, first_line
from prunus.meter.size import require_storable
from prunus.recipe.inputs import CERTIFICATE_SAMPLES, MASK, PIECES, shapes, stated
from prunus.sound import require_sound
from prunus.train import forward_logits

_LEAST_LENGTH = 4  # of texts that options allow


def require_fit(network: nn.Module, model: str, data: DataSplits) -> None:
    """Refuse a network that does not run on the data, texts of any length, or has too few outputs.

    Args:
        network: On the CPU.
        model: What its source calls it, for errors.
        data: Two of its training samples are run.

    Raises:
        InputError: It does not fit, its tensors cannot be stored, or samples hold NaN or infinite
            numbers.
    """
    require_sound(network)
    state = network.state_dict()
    require_storable({name: value for name, value in state.items() if isinstance(value, Tensor)})
    _require_finite(data)
    batch = next(iter(data.train.batches(min(2, len(data.train)))))[0]
    if data.tokenizer is not None and isinstance(batch, dict) and PIECES in batch:
        _require_vocabulary(network, model, data, data.tokenizer.vocab_size)
        ids = batch[PIECES].clone()
        ids[0, 0] = data.tokenizer.vocab_size - 1  # a later text may hold it
        batch = {**batch, PIECES: ids}
    full = stated(batch, 2, data)  # a later text may be as long
    probes = [batch, dict(full)] if isinstance(full, Mapping) else [batch]
    try:
        with torch.no_grad():
            classes = min(forward_logits(network, probe).shape[1] for probe in probes)
    except InputError:
        raise
    except Exception as error:
        if isinstance(full, Mapping):
            _require_length(network, model, data, dict(full))
        raise InputError(
            f"model '{model}' does not run on data '{data.name}' (inputs {shapes(batch)}): "
            f"{first_line(error)}; {_other_format(network, batch) or 'give arguments or data that fit'}"
        ) from error
    if classes < data.num_classes:
        least = int(data.train.labels.min())
        begin = f", or number the classes from 0: the least in train is {least}" if least else ""
        raise InputError(
            f"model '{model}' has {classes} outputs, data '{data.name}' {data.num_classes} classes; "
            f"build it with num_classes={data.num_classes}{begin}"
        )
    if isinstance(batch, dict):
        _require_padding(network, model, data)


def _require_finite(data: DataSplits) -> None:
    """Refuse NaN and infinite numbers in the samples of a certificate: answers to them prove nothing.

    Raises:
        InputError: There are some.
    """
    inputs = next(iter(data.train.batches(min(CERTIFICATE_SAMPLES, len(data.train)))))[0]
    for name, values in _floats(inputs).items():
        if not bool(torch.isfinite(values).all()):
            raise InputError(
                f"data '{data.name}': {name} of the first training samples hold NaN or infinite numbers; "
                "clean the data or fill them in"
            )


def _other_format(network: nn.Module, inputs: Inputs) -> str:
    """What to do where a network computes in another number format than its inputs are in; else nothing."""
    own = {p.dtype for p in network.parameters() if p.is_floating_point()}
    given = {values.dtype for values in _floats(inputs).values()}
    if not own or not given or own & given:
        return ""
    mine, theirs = (
        " and ".join(sorted(str(d).removeprefix("torch.") for d in found)) for found in (own, given)
    )
    read = " (float64 in data sets is read as float32)" if torch.float64 in own else ""
    return (
        f"the network is in {mine} and its inputs are in {theirs}{read}: give it as network.float()"
    )


def _floats(inputs: Inputs) -> dict[str, Tensor]:
    """Tensors of a batch that hold no whole numbers, by name."""
    named = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    return {name: values for name, values in named.items() if values.is_floating_point()}


def _require_vocabulary(network: nn.Module, model: str, data: DataSplits, tokens: int) -> None:
    """Refuse a tokenizer of more tokens than a network of transformers has embeddings for."""
    known = getattr(getattr(network, "config", None), "vocab_size", None)
    if isinstance(known, int) and tokens > known:
        raise InputError(
            f"model '{model}' knows {known} tokens, the tokenizer of '{data.name}' has {tokens}; give the "
            f"network the tokenizer that it was trained with, or build it with vocab_size={tokens}"
        )


def _require_length(
    network: nn.Module, model: str, data: DataSplits, batch: dict[str, Tensor]
) -> None:
    """Refuse texts longer than a network has positions for, where shorter ones run."""
    longest = data.max_length
    if longest is None or PIECES not in batch or MASK not in batch:
        return

    def runs(length: int) -> bool:
        cut = {name: batch[name][:, :length] for name in (PIECES, MASK)}
        try:
            with torch.no_grad():
                forward_logits(network, {**batch, **cut})
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
        f"model '{model}' takes at most {lower} tokens, data '{data.name}' "
        f"has up to max_length={longest}; give --text max_length={lower} (or fewer), or build the "
        "network with more positions"
    )


def _require_padding(network: nn.Module, model: str, data: DataSplits) -> None:
    """Refuse a network that takes another piece for padding than texts are padded with."""
    pieces = data.tokenizer
    wanted = getattr(getattr(network, "config", None), "pad_token_id", None)
    if pieces is not None and isinstance(wanted, int) and wanted != pieces.pad_id:
        raise InputError(
            f"model '{model}' has pad_token_id={wanted} in its config, and texts of "
            f"'{data.name}' are padded with token {pieces.pad_id}; build it with "
            f"pad_token_id={pieces.pad_id}"
        )
