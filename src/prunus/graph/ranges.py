"""Ranges of a dim whose ends are traced numbers: ``h[:, :self.d]``, ``h.narrow(1, 0, n // 2)``."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from prunus.graph.traced_numbers import (
    ComputedInt,
    Followed,
    Listener,
    Part,
    Parts,
    TracedInt,
    traced_int,
)
from prunus.plan import IntArray


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

    def _indexed(self, source: torch.Tensor, index: Any) -> tuple[torch.Tensor, Any]:
        """A tensor cut to the followed ranges of an index, and the rest of the index."""
        items = list(index) if isinstance(index, tuple) else [index]
        for at, dim in _dims_of_slices(items, source.dim()):
            part = self._range(source, dim, items[at])
            if part is not None:
                source, items[at] = part, slice(None)
        return source, tuple(items)

    def _narrow(self, source: torch.Tensor, dim: int, start: Any, length: Any) -> Any:
        if self._parts(start) is None or self._parts(start + length) is None:
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
        if not isinstance(given, list | tuple) or not any(
            isinstance(n, ComputedInt) for n in given
        ):
            return NotImplemented
        ends = [0, *accumulate(given)]
        if any(self._parts(end) is None for end in ends):  # a plain size stays as it is
            return NotImplemented
        return self._all(source, dim, [slice(*pair) for pair in pairwise(ends)])

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
        clear = [] if ends is None else [end for end in ends if end]
        if not clear or known is None:
            # Nothing follows these numbers: a cut must leave them as they are.
            for end in (item.start, item.stop):
                for part in self._parts(end) or ():
                    for number in _numbers(part):
                        self._listener.scalar_used(number.origin)
            return None
        for end in clear:
            self._tie(known, end)
        start = int(item.start or 0)
        stop = size if item.stop is None else min(size, int(item.stop))
        self._listener.expect_split([start, stop])
        taken = source.narrow(dim, start, stop - start)
        self._listener.expect_split([])
        return taken

    def _ends(self, item: slice, size: int) -> tuple[Parts, Parts] | None:
        """What the ends were computed from, nothing for those of the whole dim; None: not followed."""
        # As plain numbers: traced ones would tell that they were compared.
        start, stop = int(item.start or 0), size if item.stop is None else int(item.stop)
        whole = item.stop is None or (type(item.stop) is int and stop >= size)
        first = self._parts(0 if item.start is None else item.start)
        last = () if whole else self._parts(item.stop)
        inside = item.step in (None, 1) and start < stop and (whole or stop <= size)
        return None if first is None or last is None or not inside else (first, last)

    def _parts(self, end: object) -> Parts | None:
        """What a number was computed from in this trace; None where that is unclear."""
        if type(end) is int and end == 0:
            return ()
        if not isinstance(end, Followed) or int(end) <= 0:
            return None
        mine = all(
            number.listener is self._listener for part in end.parts for number in _numbers(part)
        )
        return end.parts if mine else None

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
