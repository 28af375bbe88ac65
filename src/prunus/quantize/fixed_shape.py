"""Requests of one shape, for an engine that plans ahead for it."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from prunus.errors import InputError
from prunus.quantize.options import Deployment


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


def requests(
    feed: Mapping[str, Tensor], shape: tuple[int, ...]
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Requests of one shape that hold all samples, each with how many of them it has.

    Shorter texts end in zeros, which their mask tells from text; what a request lacks in samples
    is the last one again.

    Args:
        feed: Inputs by name, ``[samples, ...]``; texts ``[samples, length]``.
        shape: ``(samples,)`` or ``(samples, length)`` of each request.

    Raises:
        InputError: A text is longer.
    """
    if all(tensor.shape[: len(shape)] == shape for tensor in feed.values()):
        yield dict(feed), shape[0]  # as it is: what a service sends, and copies would cost time
        return
    filled = {name: _filled(tensor, shape[1:]) for name, tensor in feed.items()}
    total = len(next(iter(filled.values())))
    for start in range(0, total, shape[0]):
        count = min(shape[0], total - start)
        places = torch.arange(start, start + shape[0]).clamp(max=total - 1)
        yield {name: tensor[places] for name, tensor in filled.items()}, count


def _filled(tensor: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Zeros behind each text, up to the length that there may be."""
    if not lengths:
        return tensor
    lacking = lengths[0] - tensor.shape[1]
    if lacking < 0:
        raise InputError(
            f"inputs have {tensor.shape[1]} tokens, and the network was deployed for {lengths[0]}; "
            "cut them, or deploy it with a longer shape"
        )
    return functional.pad(tensor, (0, lacking))
