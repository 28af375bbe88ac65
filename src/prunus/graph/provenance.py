"""Which whole number on which module became which dimension.

A module's ``view(batch, tokens, self.num_heads, self.head_dim)`` holds sizes that must follow a cut.
During the trace, whole numbers stored on modules (and in their configs) are replaced by
``TracedInt``, an ``int`` that remembers where it is stored; a function mode sees it arrive at ``view``
and its like, and so ties the attribute to the labels of that dimension.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunus.graph.attributes import is_settings, with_entries
from prunus.graph.ranges import Ranges
from prunus.graph.traced_numbers import Listener, QuotientInt, SizeUse, TracedInt, traced_int

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

_RECURRENT = nn.RNNBase | nn.RNNCellBase


def plant(network: nn.Module, listener: Listener, *, settings: bool = True) -> None:
    """Replace whole numbers on modules by ``TracedInt``, in place (give it a copy).

    Layers of ``torch.nn`` are left out: cutting sets their attributes by type, which is that of their
    weights.

    Args:
        network: The copy.
        listener: Is told what becomes of the numbers.
        settings: Those in bundles of any name as well, not only in ``config``.
    """
    for path, module in network.named_modules():
        own = type(module).__module__.startswith("torch.nn.")
        if (isinstance(module, _LAYERS) or own) and not _tells_its_size(module):
            continue
        state = _state_size(module)
        for key, value in list(vars(module).items()):
            if key.startswith("_") or state not in (None, key):
                continue
            if is_settings(value) and (settings or key == "config"):
                module.__dict__[key] = _traced_settings(value, (path, key), listener)
            else:
                module.__dict__[key] = _wrap(value, (path, key), listener)


def _tells_its_size(module: nn.Module) -> bool:
    """Whether a layer of ``torch.nn`` makes or asks for a size that none of its tensors shows there."""
    bare = isinstance(module, nn.RMSNorm) and getattr(module, "weight", None) is None
    return bare or isinstance(module, nn.Unflatten | nn.Transformer | _RECURRENT)


def _state_size(module: nn.Module) -> str | None:
    """What a recurrent layer calls the size of the states of zeros that it begins with.

    Projected states must stay narrower than its units (torch tells the two apart by that), so that
    of the two sizes the narrower alone can change.
    """
    if not isinstance(module, _RECURRENT):
        return None
    return "proj_size" if getattr(module, "proj_size", 0) else "hidden_size"


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
        self._ranges = Ranges(listener)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        out = self._followed(func, name, args, kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
        elif name != "__setitem__":  # whose value may be a number
            return out
        if name == "tolist":  # reads memory, which no operation tells of
            self._listener.read(args[:1])
        if func == torch.Tensor.shape.__get__ or (name == "size" and isinstance(out, torch.Size)):  # type: ignore[attr-defined]
            return self._shape(args[0], out)
        if name == "size" and isinstance(out, int):
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            return self._number(args[0], dim % args[0].dim(), out)
        if name in ("numel", "nelement") and args[0].dim() == 1:
            return self._number(args[0], 0, out)
        if name in _VIEWS and isinstance(out, torch.Tensor):
            self._viewed(*_arranged(name, args, kwargs, out), out)
        numbers = [n for n in _traced([*args, *kwargs.values()]) if self._is_mine(n)]
        if numbers:
            self._report(name, args, kwargs, out, numbers)
        return out

    def _viewed(self, first: int, sizes: list[Any], out: torch.Tensor) -> None:
        """Tell of a view's sizes that are no traced numbers: one left open, multiples, plain ones."""
        if first < 0:
            return
        if -1 in sizes:
            self._listener.size_inferred(out, first + sizes.index(-1))
        given = list(enumerate(sizes, start=first))
        for dim, size in given:
            self._ranges.made(out, dim, size)
        plain = [dim for dim, size in given if type(size) is int and size >= 0]
        self._listener.sizes_written(out, plain)

    def _followed(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of a call that is followed in a way of its own; else ``NotImplemented``."""
        if name == "affine_grid":
            return self._grid(func, *args, **kwargs)
        if name == "scaled_dot_product_attention" and kwargs.get("scale") is None:
            self._scaled(*args, **kwargs)
        if name in ("split", "split_with_sizes"):
            sizes = args[1] if len(args) > 1 else kwargs.get("split_size_or_sections")
            if isinstance(sizes, tuple | list):
                self._listener.expect_split(list(sizes))
        return self._ranges.taken(func, name, args, kwargs)

    def _scaled(self, query: torch.Tensor, *_: Any, **__: Any) -> None:
        """Attention takes its scale from the width of queries; where it is no kernel, in C++."""
        width = self._listener.dim_labels(query, query.dim() - 1)
        if width is not None:
            self._listener.scalar_used(width)

    def _grid(
        self, func: Any, theta: torch.Tensor, size: Sequence[int], *rest: Any, **more: Any
    ) -> Any:
        """A grid is the same for any number of channels, though all sizes are looked at."""
        for number in (*size[:1], *size[2:]):
            if self._is_mine(number):
                self._listener.scalar_used(number.origin)
        return func(theta, [int(number) for number in size], *rest, **more)

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
            self._report_sizes(name, _sizes(args, kwargs)[-out.dim() :] if out.dim() else [], out)
        elif name in ("split", "split_with_sizes"):
            self._report_split(args, kwargs, out)
        elif name in _LAST_SIZES and isinstance(out, torch.Tensor):
            first, sizes = _arranged(name, args, kwargs, out)
            for dim, size in enumerate(sizes, start=first):
                if self._is_mine(size):
                    self._listener.size_used(SizeUse(size.origin, out, dim))
            self._report_rows(out, sizes, first)
        elif name in _CONVOLUTIONS:
            self._report_groups(args, kwargs, out, numbers)
        elif name not in _HARMLESS:
            self._report_scalars(numbers)

    def _report_sizes(self, name: str, sizes: Sequence[Any], out: torch.Tensor) -> None:
        for dim, size in enumerate(sizes):
            if self._is_mine(size):
                use = SizeUse(size.origin, out, dim, name in _FRESH, name in _CONSTANT)
                self._listener.size_used(use)
        if name not in _FRESH:
            self._report_rows(out, sizes, 0)

    def _report_rows(self, out: torch.Tensor, sizes: Sequence[Any], first: int) -> None:
        """Tell of ``heads, width // heads``: one number is both dims together."""
        for dim, (rows, width) in enumerate(pairwise(sizes), start=first):
            mine = isinstance(width, QuotientInt) and self._is_mine(rows)
            if mine and width.rows.origin is rows.origin and self._is_mine(width.whole):
                self._listener.rows_used(width.whole, out, dim)

    def _report_scalars(self, numbers: list[TracedInt]) -> None:
        for number in numbers:
            self._listener.scalar_used(number.origin)

    def _report_groups(
        self, args: Any, kwargs: dict[str, Any], out: torch.Tensor, numbers: list[TracedInt]
    ) -> None:
        """As many groups as channels are the size of a dim; any other number has to stay."""
        groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
        weight: torch.Tensor = args[1] if len(args) > 1 else kwargs["weight"]
        channel = out.dim() - weight.dim() + 1
        for number in numbers:
            if number is groups and int(number) == out.shape[channel]:
                self._listener.size_used(SizeUse(number.origin, out, channel))
            else:
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
# Functions that arrange positions anew in dims of given sizes, of which one may be left open.
_VIEWS = {"view", "reshape", "unflatten"}
# Functions that may be given as many groups as there are channels.
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
# Functions that make dims out of nothing.
_FRESH = _SIZED - {"view", "reshape", "_unsafe_view"}
_CONSTANT = _FRESH - {"expand", "broadcast_to"}
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
    return [value for value in args if isinstance(value, int) or _is_number(value)]


def _arranged(
    name: str, args: Any, kwargs: dict[str, Any], out: torch.Tensor
) -> tuple[int, list[Any]]:
    """The sizes that a function is given, and which dim of its result the first of them is of."""
    if name == "unflatten":
        given = dict(zip(("input", "dim", "sizes"), args, strict=False)) | kwargs
        sizes = list(given["sizes"])
        return int(given["dim"]) % (out.dim() - len(sizes) + 1), sizes
    sizes = _sizes(args, kwargs)
    return out.dim() - len(sizes), sizes


def _is_number(value: object) -> bool:
    """Whether a tensor is one whole number, such as a size that was read from data."""
    return isinstance(value, torch.Tensor) and value.dim() == 0 and not value.is_floating_point()


def _traced(values: Any) -> Iterator[TracedInt]:
    for value in values:
        if isinstance(value, TracedInt):
            yield value
        elif isinstance(value, tuple | list):
            yield from _traced(value)
