"""Which whole number on which module became which dimension.

A module's ``view(batch, tokens, self.num_heads, self.head_dim)`` holds sizes that must follow a cut.
During the trace, whole numbers stored on modules (and on their Hugging Face configs) are replaced by
``TracedInt``, an ``int`` that remembers where it is stored; a function mode sees it arrive at ``view``
and its like, and so ties the attribute to the labels of that dimension.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# Functions whose size arguments are, in order, the sizes of the result's dims.
_SIZED = {"view", "reshape", "expand", "new_zeros", "new_ones", "new_full", "new_empty", "zeros", "ones"}
_SIZED |= {"full", "empty", "broadcast_to", "_unsafe_view"}


class TracedInt(int):
    """An ``int`` that knows the attribute it was read from: ``origin`` is (module path, attribute)."""

    origin: tuple[str, str]
    on_scalar_use: Callable[[tuple[str, str]], None]

    def __float__(self) -> float:
        self.on_scalar_use(self.origin)
        return float(int(self))

    def __truediv__(self, other: Any) -> Any:
        self.on_scalar_use(self.origin)
        return int(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        self.on_scalar_use(self.origin)
        return other / int(self)

    def __pow__(self, other: Any, modulo: None = None) -> Any:
        self.on_scalar_use(self.origin)
        return int(self) ** other

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


@dataclass(frozen=True)
class SizeUse:
    """An attribute used as the size of one dim of one tensor."""

    module: str
    attribute: str
    tensor: torch.Tensor
    dim: int


def plant(network: nn.Module, on_scalar_use: Callable[[tuple[str, str]], None]) -> None:
    """Replace whole numbers on modules by ``TracedInt``, in place (give it a copy).

    Layers of ``torch.nn`` are left out: cutting sets their attributes by type.
    """

    def traced(value: int, module: str, attribute: str) -> TracedInt:
        number = TracedInt(value)
        number.origin = (module, attribute)
        number.on_scalar_use = on_scalar_use
        return number

    def wrap(value: Any, module: str, attribute: str) -> Any:
        if type(value) is int:
            return traced(value, module, attribute)
        if type(value) in (tuple, list) and value and all(type(v) is int for v in value):
            return type(value)(
                traced(v, module, f"{attribute}[{i}]") for i, v in enumerate(value)
            )
        return value

    for path, module in network.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        for key, value in list(vars(module).items()):
            if key.startswith("_"):
                continue
            if key == "config" and hasattr(value, "__dict__"):
                module.__dict__[key] = own = copy.copy(value)
                own.__dict__ = dict(vars(value))
                for name, held in vars(value).items():
                    if not name.startswith("_"):
                        own.__dict__[name] = wrap(held, path, f"config.{name}")
            else:
                module.__dict__[key] = wrap(value, path, key)


def read_attribute(module: nn.Module, attribute: str) -> int:
    """The number behind ``name``, ``config.name`` or ``name[i]``."""
    holder, key = _holder(module, attribute)
    value = getattr(holder, key[0])
    return int(value if key[1] is None else value[key[1]])


def write_attribute(module: nn.Module, attribute: str, value: int) -> None:
    """Set the number behind ``name``, ``config.name`` or ``name[i]``; a config is copied first."""
    if attribute.startswith("config."):
        config = vars(module)["config"]
        own = copy.copy(config)
        own.__dict__ = dict(vars(config))
        module.__dict__["config"] = own
    holder, (name, index) = _holder(module, attribute)
    if index is None:
        holder.__dict__[name] = value
    else:
        items = list(getattr(holder, name))
        items[index] = value
        holder.__dict__[name] = type(getattr(holder, name))(items)


def _holder(module: nn.Module, attribute: str) -> tuple[Any, tuple[str, int | None]]:
    holder: Any = module
    if attribute.startswith("config."):
        holder, attribute = vars(module)["config"], attribute.removeprefix("config.")
    if attribute.endswith("]"):
        name, _, index = attribute[:-1].partition("[")
        return holder, (name, int(index))
    return holder, (attribute, None)


class SizeWatch(TorchFunctionMode):
    """Reports every ``TracedInt`` that arrives at a torch function."""

    def __init__(
        self, on_size: Callable[[SizeUse], None], on_scalar_use: Callable[[tuple[str, str]], None]
    ) -> None:
        super().__init__()
        self._on_size = on_size
        self._on_scalar = on_scalar_use

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        numbers = list(_traced(args)) + list(_traced(kwargs.values()))
        if numbers:
            self._report(getattr(func, "__name__", ""), args, kwargs, out, numbers)
        return out

    def _report(
        self, name: str, args: Any, kwargs: dict[str, Any], out: Any, numbers: list[TracedInt]
    ) -> None:
        if name in _SIZED and isinstance(out, torch.Tensor):
            sizes = _sizes(args, kwargs)
            for dim, size in enumerate(sizes[-out.dim() :] if out.dim() else []):
                if isinstance(size, TracedInt):
                    self._on_size(SizeUse(*size.origin, tensor=out, dim=dim))
        elif name == "split" and isinstance(out, tuple | list):
            sizes = args[1] if len(args) > 1 else kwargs.get("split_size_or_sections")
            dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
            parts = sizes if isinstance(sizes, tuple | list) else [sizes] * len(out)
            for part, size in zip(out, parts, strict=False):
                if isinstance(size, TracedInt):
                    self._on_size(SizeUse(*size.origin, tensor=part, dim=int(dim) % part.dim()))
        else:
            for number in numbers:
                self._on_scalar(number.origin)


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
