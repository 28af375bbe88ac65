"""Whole numbers that remember where they came from, through the little arithmetic done with sizes."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from prunus.plan import IntArray

Origin = tuple[str, str] | IntArray


class _Remembering(int):
    """An ``int`` that remembers what it was computed from as long as a trace runs; its copies are plain."""

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


class Followed(_Remembering):
    """An ``int`` whose sums, differences and whole shares tell what they were computed from."""

    __hash__ = int.__hash__

    @property
    def parts(self) -> "Parts":
        """The traced numbers (shares of them, or rows of some width) whose sum this is, in order."""
        raise NotImplementedError

    def __add__(self, other: Any) -> int:
        if isinstance(other, RestInt):
            return other + self
        return _sum(self, other) if isinstance(other, int) else NotImplemented

    def __radd__(self, other: Any) -> int:
        return _sum(other, self) if isinstance(other, int) else NotImplemented

    def __sub__(self, other: Any) -> int:
        if isinstance(other, Followed):
            return _rest(int(self) - int(other), self, other.parts)
        return int(self) - int(other) if isinstance(other, int) else NotImplemented

    def __neg__(self) -> int:
        return _rest(-int(self), None, self.parts)

    def __mul__(self, times: Any) -> int:
        if type(times) is int and 0 < times <= _MOST_PARTS:
            return _sum(*[self] * times)
        if isinstance(self, TracedInt) and isinstance(times, TracedInt):
            return _product(self, times)
        return UnclearInt(int(self) * int(times)) if isinstance(times, int) else NotImplemented

    __rmul__ = __mul__

    def __floordiv__(self, shares: Any) -> int:
        return UnclearInt(int(self) // int(shares)) if isinstance(shares, int) else NotImplemented

    def __rfloordiv__(self, whole: Any) -> int:
        return UnclearInt(int(whole) // int(self)) if isinstance(whole, int) else NotImplemented


class ComputedInt(Followed):
    """``2 * d``, ``a + b`` or ``n // 2`` of traced numbers: known as the end of a range, else plain."""

    _parts: "Parts"

    @property
    def parts(self) -> "Parts":
        """What it was computed from."""
        return self._parts


class TracedInt(Followed):
    """An ``int`` that knows where it was read from.

    ``origin`` is an attribute (module path, name), or the labels of the dim whose size it is.
    """

    origin: Origin
    listener: "Listener"

    __hash__ = int.__hash__

    @property
    def parts(self) -> "Parts":
        """The number itself."""
        return (Part(self),)

    def same(self, other: "TracedInt") -> bool:
        """Whether the other one was read from the same place; a comparison would tell of both."""
        mine, its = self.origin, other.origin
        if isinstance(mine, tuple) or isinstance(its, tuple):
            return isinstance(mine, tuple) and isinstance(its, tuple) and mine == its
        return np.array_equal(mine, its)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TracedInt):
            if other.listener is self.listener:  # else a cache kept it from another trace
                self.listener.sizes_compared(self, other)
            return int(self) == int(other)
        return int(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: int) -> bool:
        self._ordered(other)
        return int(self) < int(other)

    def __le__(self, other: int) -> bool:
        self._ordered(other)
        return int(self) <= int(other)

    def __gt__(self, other: int) -> bool:
        self._ordered(other)
        return int(self) > int(other)

    def __ge__(self, other: int) -> bool:
        self._ordered(other)
        return int(self) >= int(other)

    def _ordered(self, other: int) -> None:
        """The order of sizes may turn with a cut; a number on a module is often just checked."""
        for number in (self, other):
            if isinstance(number, TracedInt) and not isinstance(number.origin, tuple):
                number.listener.scalar_used(number.origin)

    def __float__(self) -> float:
        self.listener.scalar_used(self.origin)
        return float(int(self))

    def __truediv__(self, other: Any) -> Any:
        self.listener.scalar_used(self.origin)
        return int(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        self.listener.scalar_used(self.origin)
        return other / int(self)

    def __pow__(self, other: Any, modulo: None = None) -> Any:  # type: ignore[override]  # no modulo
        self.listener.scalar_used(self.origin)
        return int(self) ** other

    def __floordiv__(self, shares: Any) -> int:
        if not isinstance(shares, int):
            return NotImplemented
        size = int(self) // int(shares)
        if isinstance(shares, TracedInt) and size > 1 and size * int(shares) == int(self):
            return _quotient(size, self, shares)
        exact = type(shares) is int and 0 < shares <= _MOST_PARTS and 0 < size * shares == int(self)
        return _computed(size, (Part(self, shares),)) if exact else UnclearInt(size)


class RestInt(_Remembering):
    """``whole - n`` or ``-n`` of traced numbers: known as the end of a range, else plain.

    Attributes:
        whole: What was subtracted from; None: the size of the dim, which ``-n`` counts back from.
        less: What was subtracted.
    """

    whole: Followed | None
    less: "Parts"

    def __add__(self, other: Any) -> int:
        """``(whole - n) + n`` is the whole again, which the last of some sizes comes to."""
        if type(other) is int and other == 0:
            return self
        if not isinstance(other, Followed):
            return int(self) + int(other) if isinstance(other, int) else NotImplemented
        less = list(self.less)
        for part in other.parts:
            at = next((k for k, known in enumerate(less) if known.same(part)), None)
            if at is None:
                return int(self) + int(other)
            del less[at]
        if not less and self.whole is not None:
            return self.whole
        return _rest(int(self) + int(other), self.whole, tuple(less))

    __radd__ = __add__

    def __sub__(self, other: Any) -> int:
        if not isinstance(other, Followed):
            return int(self) - int(other) if isinstance(other, int) else NotImplemented
        return _rest(int(self) - int(other), self.whole, (*self.less, *other.parts))


class QuotientInt(_Remembering):
    """``width // heads`` of two traced numbers: plain, but as the size behind that of the heads.

    Attributes:
        whole: What was divided.
        rows: By what.
    """

    whole: TracedInt
    rows: TracedInt


class UnclearInt(_Remembering):
    """A product or share of traced numbers that nothing follows: plain, but no number in the code."""

    def __mul__(self, times: Any) -> int:
        return UnclearInt(int(self) * int(times)) if isinstance(times, int) else NotImplemented

    __rmul__ = __mul__

    def __floordiv__(self, shares: Any) -> int:
        return UnclearInt(int(self) // int(shares)) if isinstance(shares, int) else NotImplemented


class Part(NamedTuple):
    """One term of a sum: one of ``shares`` equal shares of a number, or as many rows of a width.

    Attributes:
        number: The traced one.
        shares: How many equal shares are made of it.
        width: Positions of each row, as ``head_dim`` in ``num_heads * head_dim``; None: of one.
    """

    number: TracedInt
    shares: int = 1
    width: TracedInt | None = None

    @property
    def size(self) -> int:
        """Positions that this term counts."""
        return int(self.number) // self.shares * (1 if self.width is None else int(self.width))

    def same(self, other: "Part") -> bool:
        """Whether it is the same share of the same number."""
        if self.shares != other.shares or not self.number.same(other.number):
            return False
        if self.width is None or other.width is None:
            return self.width is other.width
        return self.width.same(other.width)


Parts = tuple[Part, ...]
_A_WIDTH = re.compile(r"dim|size|width|channels|^d_")
_MOST_PARTS = 64  # a loop that counts up sizes is no end of a range


def _computed(value: int, parts: Parts) -> ComputedInt:
    number = ComputedInt(value)
    number._parts = parts
    return number


def _rest(value: int, whole: Followed | None, less: Parts) -> int:
    if len(less) > _MOST_PARTS:
        return value
    number = RestInt(value)
    number.whole, number.less = whole, less
    return number


def _quotient(value: int, whole: TracedInt, rows: TracedInt) -> QuotientInt:
    number = QuotientInt(value)
    number.whole, number.rows = whole, rows
    return number


def _product(a: TracedInt, b: TracedInt) -> int:
    """Rows of a width. Which is which only names tell; the wrong way round nothing can be cut."""
    size = int(a) * int(b)
    if min(int(a), int(b)) < 2:
        return UnclearInt(size)
    name = a.origin[1].rpartition(".")[2] if isinstance(a.origin, tuple) else ""
    rows, width = (b, a) if _A_WIDTH.search(name) else (a, b)
    return _computed(size, (Part(rows, 1, width),))


def _sum(*terms: int) -> int:
    """A sum that remembers its terms, where all of them are followed."""
    value = sum(map(int, terms))
    if not all(isinstance(term, Followed) or (type(term) is int and not term) for term in terms):
        return value
    parts = tuple(part for term in terms if isinstance(term, Followed) for part in term.parts)
    return _computed(value, parts) if len(parts) <= _MOST_PARTS else UnclearInt(value)


class Listener(Protocol):
    """Hears what becomes of traced numbers."""

    def dim_labels(self, tensor: torch.Tensor, dim: int) -> IntArray | None:
        """Labels of one dim, its own axis first; None where it carries none."""

    def size_used(self, use: "SizeUse") -> None:
        """A dim was made with a traced size."""

    def rows_used(self, whole: TracedInt, tensor: torch.Tensor, dim: int) -> None:
        """A dim has so many rows, the next one their width, and both make up a traced number."""

    def multiple_used(self, number: TracedInt, ids: IntArray) -> None:
        """A view has a dim, labelled ``ids``, that is several times as long as a number."""

    def size_inferred(self, tensor: torch.Tensor, dim: int) -> None:
        """A view left the size of one dim open."""

    def sizes_written(self, tensor: torch.Tensor, dims: Sequence[int]) -> None:
        """A view was given plain numbers as the sizes of some dims."""

    def read(self, tensors: Iterable[torch.Tensor]) -> None:
        """Values of tensors were read."""

    def scalar_used(self, origin: Origin) -> None:
        """A formula computed with a traced number."""

    def sizes_compared(self, one: TracedInt, other: TracedInt) -> None:
        """Two traced numbers were asked whether they are equal."""

    def expect_split(self, sizes: list[int]) -> None:
        """A split into these sizes follows."""


def traced_int(value: int, origin: Origin, listener: Listener) -> TracedInt:
    """A number that remembers its origin and tells what it is used for."""
    number = TracedInt(value)
    number.origin = origin
    number.listener = listener
    return number


@dataclass(frozen=True)
class SizeUse:
    """A traced number used as the size of one dim of one tensor.

    Attributes:
        origin: Of the number.
        tensor: The result.
        dim: Its dim of that size.
        fresh: Whether the dim was made, as by ``zeros`` or ``expand``, and not a view of others.
        constant: Whether the whole tensor was made out of nothing.
    """

    origin: Origin
    tensor: torch.Tensor
    dim: int
    fresh: bool = False
    constant: bool = False
