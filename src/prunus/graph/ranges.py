"""Ranges of a dim whose ends are traced numbers: ``h[:, :self.d]``, ``h.narrow(1, 0, n // 2)``."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from prunus.graph.traced_numbers import (
    ComputedInt,
    Followed,
    Listener,
    Part,
    Parts,
    QuotientInt,
    RestInt,
    TracedInt,
    UnclearInt,
    traced_int,
)
from prunus.plan import IntArray


class _End(NamedTuple):
    """Where a range ends, and what that says: of the positions from one on, as many as some numbers.

    Of ``h[:, :d]`` the first ``d``; of ``h[:, -d:]`` the last; of ``h[:, : n - d]`` the first ``n``
    and the last ``d`` of these.
    """

    at: int
    ties: tuple[tuple[int, Parts], ...] = ()


class Ranges:
    """Follows ranges of a dim whose ends were computed from traced numbers.

    ``h[:, :d]`` and ``h[:, d:]`` go on meeting where they met if ``d`` is as many as there stay of
    the positions before it.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def taken(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of a call that takes followed ranges; ``NotImplemented`` of any other."""
        if name in ("__getitem__", "__setitem__") and isinstance(args[0], torch.Tensor):
            source, index = self._indexed(args[0], args[1])
            return NotImplemented if source is args[0] else func(source, index, *args[2:])
        names = _ARGUMENTS.get(name, ())
        given = dict(zip(names, args, strict=False)) | kwargs
        if not names or len(args) > len(names) or not set(given) <= set(names):
            return NotImplemented
        values = [given.get(key, 0) for key in names]  # all but dim have to be given
        if name == "narrow":
            return self._narrow(*values)
        return self._tensor_split(*values) if name == "tensor_split" else self._split(*values)

    def made(self, view: torch.Tensor, dim: int, size: object) -> None:
        """A view has a dim that is several times as long as a number on a module, as ``3 * d``."""
        parts = self._parts(size) if isinstance(size, ComputedInt) else None
        known = self._listener.dim_labels(view, dim) if parts else None
        if not parts or known is None or np.unique(known).size < known.size or not known.all():
            return  # channels that are coupled already follow numbers of their own
        number = parts[0].number
        if all(part.same(Part(number)) for part in parts):
            self._listener.multiple_used(number, known)

    def _indexed(self, source: torch.Tensor, index: Any) -> tuple[torch.Tensor, Any]:
        """A tensor cut to the followed ranges of an index, and the rest of the index."""
        items = list(index) if isinstance(index, tuple) else [index]
        for at, dim in _dims_of_slices(items, source.dim()):
            part = self._range(source, dim, items[at])
            if part is not None:
                source, items[at] = part, slice(None)
        return source, tuple(items)

    def _narrow(self, source: torch.Tensor, dim: int, start: Any, length: Any) -> Any:
        size = source.shape[dim]
        if self._end(start, size) is None or self._end(start + length, size) is None:
            return NotImplemented
        found = self._all(source, dim, [slice(start, start + length)])
        return found if found is NotImplemented else found[0]

    def _tensor_split(self, source: torch.Tensor, given: Any, dim: int) -> Any:
        if type(given) is int:
            # Equal parts are what chunk makes, too: the walk has a rule for it.
            size = source.shape[dim]
            return NotImplemented if size % given or not size else source.chunk(given, dim)
        if not isinstance(given, list | tuple):
            return NotImplemented
        return self._all(source, dim, [slice(*ends) for ends in pairwise([0, *given, None])])

    def _split(self, source: torch.Tensor, given: Any, dim: int) -> Any:
        """Sizes read from one place each are left to ``SizeWatch``; computed ones are ranges."""
        if isinstance(given, QuotientInt):
            self._equal_parts(source, given, dim)
        elif isinstance(given, ComputedInt) and source.shape[dim] % given == 0:
            given = [given] * (source.shape[dim] // int(given))
        if not isinstance(given, list | tuple) or not any(
            isinstance(n, ComputedInt | RestInt) for n in given
        ):
            return NotImplemented
        ends, size = [0, *accumulate(given)], source.shape[dim]
        if any(self._end(end, size) is None for end in ends):  # a plain size stays as it is
            return NotImplemented
        return self._all(source, dim, [slice(*pair) for pair in pairwise(ends)])

    def _equal_parts(self, source: torch.Tensor, size: QuotientInt, dim: int) -> None:
        """``x.split(channels // paths)``: the first is the size of the dim, the second stays."""
        if size.whole.listener is not self._listener:
            return
        self._listener.scalar_used(size.rows.origin)
        known = self._listener.dim_labels(source, dim % source.dim())
        if known is not None and len(known) == int(size.whole):
            self._same(known, size.whole)
        else:
            self._listener.scalar_used(size.whole.origin)

    def _all(self, source: torch.Tensor, dim: int, items: list[slice]) -> Any:
        """These ranges of a dim; ``NotImplemented`` where not all of them are followed."""
        dim %= source.dim()
        if any(self._ends(item, source.shape[dim]) is None for item in items):
            return NotImplemented
        parts = [self._range(source, dim, item) for item in items]
        return NotImplemented if any(part is None for part in parts) else tuple(parts)

    def _range(self, source: torch.Tensor, dim: int, item: slice) -> torch.Tensor | None:
        """A range of a dim, its ends told to the listener; None where one of them is unclear."""
        size, known = source.shape[dim], self._listener.dim_labels(source, dim)
        ends = self._ends(item, size)
        clear = [] if ends is None else [tie for end in ends for tie in end.ties]
        if not clear or known is None:
            # Nothing follows these numbers: a cut must leave them as they are.
            for _, parts in (
                tie for end in (item.start, item.stop) for tie in self._told(end, size)
            ):
                for number in (number for part in parts for number in _numbers(part)):
                    self._listener.scalar_used(number.origin)
            return None
        for first, parts in clear:
            self._tie(known[first:], parts)
        start, stop = self._place(item, size)
        self._listener.expect_split([start, stop])
        taken = source.narrow(dim, start, stop - start)
        self._listener.expect_split([])
        return taken

    def _told(self, end: object, size: int) -> tuple[tuple[int, Parts], ...]:
        found = self._end(end, size)
        return () if found is None else found.ties

    def _place(self, item: slice, size: int) -> tuple[int, int]:
        """First position and the one after the last, not below zero; as plain numbers."""
        # Traced ones would tell that they were compared.
        ends = (int(item.start or 0), size if item.stop is None else min(size, int(item.stop)))
        start, stop = (end + size if end < 0 else end for end in ends)
        return start, stop

    def _ends(self, item: slice, size: int) -> tuple[_End, _End] | None:
        """What the ends were computed from, nothing for those of the whole dim; None: not followed."""
        start, stop = self._place(item, size)
        plain = type(item.stop) in (int, UnclearInt)
        whole = item.stop is None or (plain and item.stop >= size)
        first = self._end(0 if item.start is None else item.start, size)
        last = _End(size) if whole else self._end(item.stop, size)
        inside = item.step in (None, 1) and 0 <= start < stop
        inside = inside and (whole or int(item.stop) <= size)
        return None if first is None or last is None or not inside else (first, last)

    def _end(self, end: Any, size: int) -> _End | None:
        """Where a range ends and what that says; None where it is unclear."""
        if not isinstance(end, RestInt):
            parts = self._parts(end)
            return None if parts is None else _End(int(end), ((0, parts),) if parts else ())
        at = int(end) + (size if end.whole is None else 0)
        whole = () if end.whole is None else self._parts(end.whole)
        # Of several numbers none tells in which order they follow that place.
        if len(end.less) != 1 or whole is None or not self._mine(end.less) or at < 0:
            return None
        return _End(at, ((0, whole), (at, end.less)) if whole else ((at, end.less),))

    def _parts(self, end: object) -> Parts | None:
        """What a number was computed from in this trace; None where that is unclear."""
        if type(end) in (int, UnclearInt) and end == 0:
            return ()
        if not isinstance(end, Followed) or int(end) <= 0:
            return None
        return end.parts if self._mine(end.parts) else None

    def _mine(self, parts: Parts) -> bool:
        return all(n.listener is self._listener for part in parts for n in _numbers(part))

    def _tie(self, ids: IntArray, parts: Parts) -> None:
        """Say that of the first positions there stay as many as a sum of numbers, one by one."""
        start = 0
        for part in parts:
            piece = ids[start : start + part.size]
            start += part.size
            if part.width is not None:
                rows = piece.reshape(int(part.number), int(part.width), *piece.shape[1:])
                self._same(rows, part.number)
                self._same(np.moveaxis(rows, 1, 0), part.width)
                continue
            if part.size == 1:
                self._listener.scalar_used(piece)
            self._same(np.tile(piece, (part.shares, *[1] * (piece.ndim - 1))), part.number)

    def _same(self, ids: IntArray, number: TracedInt) -> None:
        """Say that as many of these positions (axis 0) stay as a number says."""
        self._listener.sizes_compared(traced_int(int(number), ids, self._listener), number)


def _numbers(part: Part) -> list[TracedInt]:
    return [part.number] if part.width is None else [part.number, part.width]


_ARGUMENTS = {
    "narrow": ("input", "dim", "start", "length"),
    "tensor_split": ("input", "indices_or_sections", "dim"),
    "split": ("tensor", "split_size_or_sections", "dim"),
    "split_with_sizes": ("tensor", "split_sizes", "dim"),
}


def _dims_of_slices(items: Sequence[Any], dims: int) -> list[tuple[int, int]]:
    """Where an index has slices, and of which dims; none where it has what is not followed."""
    takes = [_takes(item) for item in items]
    if None in takes:
        return []
    rest = dims - sum(n for n in takes if n is not None)
    found, dim = [], 0
    for at, (item, n) in enumerate(zip(items, takes, strict=True)):
        if isinstance(item, slice):
            found.append((at, dim))
        dim += rest if item is Ellipsis else n or 0
    return found


def _takes(item: object) -> int | None:
    """How many dims of a tensor an entry of an index takes; None of one that is not followed."""
    if item is None or item is Ellipsis:
        return 0
    whole = isinstance(item, torch.Tensor) and item.dtype in (torch.int32, torch.int64)
    return 1 if whole or isinstance(item, slice) or type(item) in (int, TracedInt) else None
