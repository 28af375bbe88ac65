"""A stand-in of a network that can be run without touching it, and where its weights come from."""

import copy
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Place = Literal["meta", "cpu"]


class _Origin(NamedTuple):
    """Where the values of a stand-in parameter are."""

    values: Tensor
    offset: int
    stand_in: Tensor  # held so that its storage's address is not given to another tensor
    version: int  # of the stand-in, whose values are no others while it stays


class _Copy(NamedTuple):
    """A tensor that holds the entries of a parameter."""

    share: Fraction
    tensor: Tensor
    version: int


class Shadow:
    """A copy of a network in eval mode whose tensors are shapes only (meta) or copies (cpu).

    No weight is copied on meta, so a shadow costs next to nothing there.
    """

    def __init__(self, network: nn.Module, place: Place) -> None:
        stand_ins: dict[int, Any] = {}
        pairs = []
        for tensor in _tensors(network):
            if id(tensor) in stand_ins or not _is_plain(tensor):
                continue
            stand_in = _stand_in(tensor, place)
            stand_ins[id(tensor)] = stand_in
            if isinstance(tensor, nn.Parameter) and not tensor.is_meta:
                pairs.append((stand_in, tensor.detach() if place == "meta" else stand_in.detach()))
        # The memo of deepcopy maps what it meets: tied tensors stay tied, and weights that older
        # hooks left on a module as results of a computation, which deepcopy refuses, are replaced.
        self.network: nn.Module = copy.deepcopy(network, stand_ins)
        self.network.eval()
        self.weights = WeightShares(pairs)


class WeightShares:
    """Tells how much of an operand is not zero, if it is a parameter or a view or copy of one."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._origins = {
            _storage(stand_in): _Origin(
                values,
                int(values.storage_offset() - stand_in.storage_offset()),
                stand_in,
                _version(stand_in),
            )
            for stand_in, values in pairs
        }
        self._copies: dict[int, _Copy] = {}
        self._known: dict[tuple[Any, ...], Fraction] = {}

    def share(self, operand: Tensor) -> Fraction | None:
        """Share of nonzero entries of an operand; None where it is not known to be a parameter.

        What was written to since, in place, is none.
        """
        if operand.layout != torch.strided or operand.numel() == 0:
            return None
        storage = _storage(operand)
        copied = self._copies.get(storage)
        if copied is not None:
            return copied.share if _version(copied.tensor) == copied.version else None
        origin = self._origins.get(storage)
        if origin is None or _version(origin.stand_in) != origin.version:
            return None
        size, stride, offset = tuple(operand.shape), operand.stride(), operand.storage_offset()
        key = (storage, size, stride, offset)
        if key not in self._known:
            # The operand's own window on the original values: exact for a slice of a fused matrix.
            window = torch.as_strided(origin.values, size, stride, offset + origin.offset)
            self._known[key] = Fraction(int(torch.count_nonzero(window)), operand.numel())
        return self._known[key]

    def follow(self, source: Tensor, result: Tensor) -> None:
        """Note that ``result`` holds the entries of ``source``, in another dtype or layout."""
        share = self.share(source)
        if share is not None and _storage(source) != _storage(result):
            self._copies[_storage(result)] = _Copy(share, result, _version(result))


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and the tensors that modules hold as plain attributes."""
    for module in network.modules():
        held = vars(module)
        for values in (held["_parameters"], held["_buffers"], held):
            yield from (value for value in values.values() if isinstance(value, Tensor))


def _is_plain(tensor: Tensor) -> bool:
    # Subclasses (quantized or distributed tensors) copy themselves by their own rules.
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    return plain and tensor.layout == torch.strided and not tensor.is_quantized


def _stand_in(tensor: Tensor, place: Place) -> Tensor:
    if place == "meta":
        # Same strides: a view of the stand-in is then the same window on the original.
        bare = torch.empty_strided(
            tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="meta"
        )
    else:
        bare = tensor.detach().to(place, copy=True)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(bare, requires_grad=tensor.requires_grad)
    return bare


def _version(tensor: Tensor) -> int:
    """Grows with every change in place, also through a view; 0 for inference tensors, which do not tell."""
    return 0 if tensor.is_inference() else tensor._version


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
