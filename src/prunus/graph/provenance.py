"""Which whole number on which module became which dimension.

A module's ``view(batch, tokens, self.num_heads, self.head_dim)`` holds sizes that must follow a cut.
During the trace, whole numbers stored on modules (and in their configs) are replaced by
``TracedInt``, an ``int`` that remembers where it is stored; a function mode sees it arrive at ``view``
and its like, and so ties the attribute to the labels of that dimension.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunus.graph.attributes import is_settings, with_entries
from prunus.plan import IntArray

Origin = tuple[str, str] | IntArray

# Functions whose size arguments are, in order, the sizes of the result's dims.
_SIZED = {
    "view",
    "reshape",
    "expand",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "zeros",
    "ones",
}
_SIZED |= {"full", "empty", "broadcast_to", "_unsafe_view"}


class TracedInt(int):
    """An ``int`` that knows where it was read from.

    ``origin`` is an attribute (module path, name), or the labels of the dim whose size it is.
    """

    origin: Origin
    listener: "Listener"

    __hash__ = int.__hash__

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

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


class Listener(Protocol):
    """Hears what becomes of traced numbers."""

    def dim_labels(self, tensor: torch.Tensor, dim: int) -> IntArray | None:
        """Labels of one dim, its own axis first; None where it carries none."""

    def size_used(self, use: "SizeUse") -> None:
        """A dim was made with a traced size."""

    def size_inferred(self, tensor: torch.Tensor, dim: int) -> None:
        """A view left the size of one dim open."""

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
    """A traced number used as the size of one dim of one tensor."""

    origin: Origin
    tensor: torch.Tensor
    dim: int
    fresh: bool = False


# Layers that keep their own sizes: cutting sets those by type.
_LAYERS = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.Linear,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.Embedding,
)


def plant(network: nn.Module, listener: Listener) -> None:
    """Replace whole numbers on modules by ``TracedInt``, in place (give it a copy).

    Layers of ``torch.nn`` are left out: cutting sets their attributes by type, which is that of their
    weights.
    """
    for path, module in network.named_modules():
        own = type(module).__module__.startswith("torch.nn.")
        if (isinstance(module, _LAYERS) or own) and not _tells_its_size(module):
            continue
        for key, value in list(vars(module).items()):
            if key.startswith("_"):
                continue
            if is_settings(value):
                module.__dict__[key] = _traced_settings(value, (path, key), listener)
            else:
                module.__dict__[key] = _wrap(value, (path, key), listener)


def _tells_its_size(module: nn.Module) -> bool:
    """Whether a layer of ``torch.nn`` has a size that none of its tensors has."""
    bare = isinstance(module, nn.RMSNorm) and getattr(module, "weight", None) is None
    return bare or isinstance(module, nn.Unflatten)


def _traced_settings(settings: Any, origin: tuple[str, str], listener: Listener) -> Any:
    """A copy of shared settings, the module's own, with its whole numbers traced."""
    path, key = origin
    traced = {
        name: number
        for name, value in vars(settings).items()
        if not name.startswith("_")
        and (number := _wrap(value, (path, f"{key}.{name}"), listener)) is not value
    }
    return with_entries(settings, traced) if traced else settings


def _wrap(value: Any, origin: tuple[str, str], listener: Listener) -> Any:
    if type(value) is int:
        # A negative one counts dims from the end or leaves a size open: no size of its own.
        return traced_int(value, origin, listener) if value >= 0 else value
    if type(value) in (tuple, list) and value and all(type(v) is int for v in value):
        path, name = origin
        items = (_wrap(v, (path, f"{name}[{i}]"), listener) for i, v in enumerate(value))
        return type(value)(items)
    return value


class SizeWatch(TorchFunctionMode):
    """Reports every ``TracedInt`` that arrives at a torch function, and makes those of shapes.

    ``batch, tokens, width = x.shape`` followed by ``y.view(batch, tokens, width)`` says that a dim of
    ``y`` is as long as one of ``x``: numbers read from a shape carry the labels of their dim.
    """

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("split", "split_with_sizes"):
            sizes = args[1] if len(args) > 1 else kwargs.get("split_size_or_sections")
            if isinstance(sizes, tuple | list):
                self._listener.expect_split(list(sizes))
        out = func(*args, **kwargs)
        if func == torch.Tensor.shape.__get__ or (name == "size" and isinstance(out, torch.Size)):  # type: ignore[attr-defined]
            return self._shape(args[0], out)
        if name == "size" and isinstance(out, int):
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            return self._number(args[0], dim % args[0].dim(), out)
        if name in ("view", "reshape") and isinstance(out, torch.Tensor):
            sizes = _sizes(args, kwargs)
            if -1 in sizes and len(sizes) == out.dim():
                self._listener.size_inferred(out, sizes.index(-1))
        numbers = [
            number
            for number in (*_traced(args), *_traced(kwargs.values()))
            if self._is_mine(number)
        ]
        if numbers:
            self._report(name, args, kwargs, out, numbers)
        return out

    def _is_mine(self, size: object) -> TypeGuard[TracedInt]:
        """Whether a number was traced here; a cache may hold one of another trace."""
        return isinstance(size, TracedInt) and size.listener is self._listener

    def _number(self, tensor: torch.Tensor, dim: int, size: int) -> int:
        ids = self._listener.dim_labels(tensor, dim)
        return size if ids is None else traced_int(size, ids, self._listener)

    def _shape(self, tensor: torch.Tensor, shape: torch.Size) -> torch.Size:
        return torch.Size([self._number(tensor, dim, size) for dim, size in enumerate(shape)])

    def _report(
        self, name: str, args: Any, kwargs: dict[str, Any], out: Any, numbers: list[TracedInt]
    ) -> None:
        if name in _SIZED and isinstance(out, torch.Tensor):
            sizes = _sizes(args, kwargs)
            for dim, size in enumerate(sizes[-out.dim() :] if out.dim() else []):
                if self._is_mine(size):
                    self._listener.size_used(SizeUse(size.origin, out, dim, name in _FRESH))
        elif name in ("split", "split_with_sizes"):
            self._report_split(args, kwargs, out)
        elif name in _LAST_SIZES and isinstance(out, torch.Tensor):
            sizes = _sizes(args[1:], kwargs)
            first = int(args[1]) % args[0].dim() if name == "unflatten" else out.dim() - len(sizes)
            for dim, size in enumerate(sizes, start=first):
                if self._is_mine(size):
                    self._listener.size_used(SizeUse(size.origin, out, dim))
        elif name not in _HARMLESS:
            for number in numbers:
                self._listener.scalar_used(number.origin)

    def _report_split(self, args: Any, kwargs: dict[str, Any], out: Sequence[torch.Tensor]) -> None:
        given: Any = args[1] if len(args) > 1 else kwargs.get("split_size_or_sections")
        dim = int(args[2] if len(args) > 2 else kwargs.get("dim", 0))
        sizes = given if isinstance(given, tuple | list) else [given] * len(out)
        for part, size in zip(out, sizes, strict=False):
            if self._is_mine(size):
                self._listener.size_used(SizeUse(size.origin, part, dim % part.dim()))


# Functions that take the sizes of some dims of their result: the last ones, or those from one on.
_LAST_SIZES = {"layer_norm", "rms_norm", "unflatten"}
# Functions that make dims out of nothing.
_FRESH = _SIZED - {"view", "reshape", "_unsafe_view"}
# Functions that take dimension numbers or ranges: a traced number there fixes nothing.
_HARMLESS = {
    "__getitem__",
    "transpose",
    "permute",
    "flatten",
    "unsqueeze",
    "squeeze",
    "softmax",
    "arange",
}


def _sizes(args: Any, kwargs: dict[str, Any]) -> list[Any]:
    for value in [*args, *kwargs.values()]:
        if isinstance(value, tuple | list | torch.Size):
            return list(value)
    return [value for value in args if isinstance(value, int)]


def _traced(values: Any) -> Iterator[TracedInt]:
    for value in values:
        if isinstance(value, TracedInt):
            yield value
        elif isinstance(value, tuple | list):
            yield from _traced(value)
