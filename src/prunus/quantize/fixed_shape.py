"""Requests of one shape, for an engine that plans ahead for it."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.data import Inputs
from prunus.errors import InputError, first_line
from prunus.meter import as_predictor
from prunus.quantize.job import trial
from prunus.quantize.options import Deployment

_TOKENS = "input_ids"
_ROUNDING = 1e-3  # of the largest logit: far above that of float32


def require_shape(deployment: Deployment, *, has_length: bool, longest: int | None = None) -> None:
    """Refuse a fixed shape that is none of the network's requests.

    Args:
        deployment: Whose ``shape`` it is; any is fine where it has none.
        has_length: Whether inputs are texts, whose dimension 1 is a length.
        longest: Tokens that a text may have, where it is known.

    Raises:
        InputError: It has a length too many or too few, or texts may be longer.
    """
    shape = deployment.shape
    if shape is None:
        return
    if has_length and len(shape) == 1:
        raise InputError(
            f"shape={list(shape)} names samples alone, and texts have a length; give samples and "
            f"tokens, as in shape={[shape[0], longest or 128]}"
        )
    if not has_length and len(shape) == 2:
        raise InputError(
            f"shape={list(shape)} names tokens, and the inputs are no texts; give shape={[shape[0]]}"
        )
    if longest is not None and longest > shape[-1]:
        raise InputError(
            f"shape={list(shape)} is for texts of at most {shape[-1]} tokens, and they may have "
            f"{longest}; give shape={[shape[0], longest]}, or cut texts by max_length={shape[-1]}"
        )


def require_mask(names: Sequence[str], shape: tuple[int, ...] | None) -> None:
    """Refuse to fill up texts for a network that takes padding for text.

    Args:
        names: Of the inputs that the network reads.
        shape: Samples, and tokens where there are any.

    Raises:
        InputError: None of the inputs is a mask.
    """
    if shape is not None and len(shape) == 2 and not any("mask" in name for name in names):
        raise InputError(
            f"shape={list(shape)} fills up shorter texts, and the network reads no attention_mask "
            f"that tells padding from text, only {', '.join(names)}; leave shape out"
        )


def padding_of(network: nn.Module) -> int:
    """The token that fills up texts of a network: that of its config, else 0."""
    found = getattr(getattr(network, "config", None), "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else 0


def require_filled(network: nn.Module, inputs: Inputs, shape: tuple[int, ...] | None) -> None:
    """Refuse to fill up texts for a network that answers otherwise then, whatever their mask says.

    Such as one that looks for the last token by an id of padding that it knows no more.

    Args:
        network: In float32. A copy is run.
        inputs: Texts by name; where none has room in the shape, nothing is compared.
        shape: Samples, and tokens where there are any.

    Raises:
        InputError: Its logits change by more than rounding, or it cannot run on texts of that length.
    """
    if shape is None or len(shape) == 1 or not isinstance(inputs, Mapping):
        return
    texts = _with_room(inputs, shape[1])
    if texts is None:
        return
    predictor = as_predictor(trial(network))
    wanted = predictor(copy.deepcopy(texts))
    ((filled, _),) = requests(texts, (len(wanted), shape[1]), padding_of(network))
    try:
        found = predictor(filled)
    except Exception as error:  # a user's forward may raise anything
        raise InputError(
            f"shape={list(shape)}: the network does not run on texts of {shape[1]} tokens: "
            f"{first_line(error)}; give a shape that it takes"
        ) from error
    change, largest = float((found - wanted).abs().max()), float(wanted.abs().max())
    if bool(wanted.isfinite().all()) and not change <= _ROUNDING * largest:
        raise InputError(
            f"shape={list(shape)} fills up shorter texts, which changes logits of this network by "
            f"{change:.2g}, of {largest:.2g} at most; leave shape out, or have config.pad_token_id name the "
            "token that it takes for padding"
        )


def _with_room(inputs: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor] | None:
    """Texts that are shorter than a shape: all, else the shortest alone, cut where its padding begins."""
    if max(tensor.shape[1] for tensor in inputs.values()) < tokens:
        return dict(inputs)
    mask = next(tensor for name, tensor in inputs.items() if "mask" in name) != 0
    row = int(mask.sum(1).argmin())
    length = int(mask[row].sum())
    if not (0 < length < tokens and bool(mask[row, :length].all())):
        return None
    return {name: tensor[[row], :length] for name, tensor in inputs.items()}


def requests(
    feed: Mapping[str, Tensor], shape: tuple[int, ...], padding: int = 0
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Requests of one shape that hold all samples, each with how many of them it has.

    Shorter texts end in padding, of ``input_ids`` the token given and else zeros, which their mask
    tells from text; what a request lacks in samples is the last one again.

    Args:
        feed: Inputs by name, ``[samples, ...]``; texts ``[samples, length]``.
        shape: ``(samples,)`` or ``(samples, length)`` of each request.
        padding: Token id.

    Raises:
        InputError: A text is longer.
    """
    if all(tensor.shape[: len(shape)] == shape for tensor in feed.values()):
        yield dict(feed), shape[0]  # as it is: what a service sends, and copies would cost time
        return
    filled = {
        name: _filled(tensor, shape[1:], padding if name == _TOKENS else 0)
        for name, tensor in feed.items()
    }
    total = len(next(iter(filled.values())))
    for start in range(0, total, shape[0]):
        count = min(shape[0], total - start)
        places = torch.arange(start, start + shape[0]).clamp(max=total - 1)
        yield {name: tensor[places] for name, tensor in filled.items()}, count


def _filled(tensor: Tensor, lengths: tuple[int, ...], padding: int) -> Tensor:
    """Padding behind each text, up to the length that there may be."""
    if not lengths:
        return tensor
    lacking = lengths[0] - tensor.shape[1]
    if lacking < 0:
        raise InputError(
            f"inputs have {tensor.shape[1]} tokens, and the network was deployed for {lengths[0]}; "
            "cut them, or deploy it with a longer shape"
        )
    return functional.pad(tensor, (0, lacking), value=padding)
