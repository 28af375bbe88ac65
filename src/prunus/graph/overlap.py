"""Parameters that lie in one memory without being one parameter."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prunus.errors import InputError


class _Span(NamedTuple):
    """Where a parameter lies: addresses of its first byte and of the one behind its last."""

    device: str
    first: int
    end: int
    order: int
    name: str
    tensor: Tensor


def require_tied_by_name(network: nn.Module) -> None:
    """Refuse two parameters over one memory: a copy, and so a cut, parts them, and a file holds both.

    Shapes do not matter: a transpose and a part of another parameter are in its memory, too. Parts of
    one memory that lie beside each other, as rows or columns of a matrix, share nothing.

    Raises:
        InputError: There are two.
    """
    open_spans: list[_Span] = []
    for span in sorted(_spans(network), key=lambda s: (s.device, s.first, s.end, s.order)):
        open_spans = [s for s in open_spans if s.device == span.device and s.end > span.first]
        for other in open_spans:
            if _overlap(other, span):
                one, two = sorted((other, span), key=lambda s: s.order)
                raise InputError(
                    f"parameters '{one.name}' and '{two.name}' share their memory without being one "
                    "parameter: tie them (assign the parameter itself, not its .data, and take a "
                    "transpose or a part of it in forward()), or clone one"
                )
        open_spans.append(span)


def _spans(network: nn.Module) -> Iterator[_Span]:
    for order, (name, tensor) in enumerate(network.named_parameters()):
        if tensor.is_meta or not tensor.numel() or tensor.layout != torch.strided:
            continue
        first = tensor.data_ptr()
        if not first:  # a wrapper around other tensors has no memory of its own
            continue
        last = sum(s * (n - 1) for s, n in zip(tensor.stride(), tensor.shape, strict=True))
        end = first + (last + 1) * tensor.element_size()
        yield _Span(str(tensor.device), first, end, order, name, tensor)


def _overlap(one: _Span, two: _Span) -> bool:
    """Whether two parameters have a byte in common; the first begins no later than the second."""
    if one.first == two.first:
        return True
    taken = torch.zeros(max(one.end, two.end) - one.first, dtype=torch.bool)
    _bytes(taken, one, one.first).fill_(True)
    return bool(_bytes(taken, two, one.first).any())


def _bytes(flags: Tensor, span: _Span, base: int) -> Tensor:
    """The flags of a parameter's bytes, of one flag for each byte from the address ``base`` on."""
    width = span.tensor.element_size()
    axes = zip(span.tensor.shape, span.tensor.stride(), strict=True)
    # Along a stride of 0 all is in one place, which cannot be written to more than once.
    kept = [(size, stride * width) for size, stride in axes if stride]
    sizes, strides = [size for size, _ in kept], [stride for _, stride in kept]
    return flags.as_strided((*sizes, width), (*strides, 1), span.first - base)
