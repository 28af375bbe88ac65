"""Whole numbers on modules, by name: ``heads``, ``config.heads``, ``sizes[1]``.

Many modules keep their sizes in an object of settings (``self.config``, ``self.args``, a dataclass, a
namespace) that they share. What a cut changes in it, it changes in a copy that is the module's own.
"""

import copy
import enum
import operator
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

_NO_SETTINGS = (nn.Module, torch.Tensor, type, enum.Enum, ModuleType, int, float, str)


def is_settings(value: object) -> bool:
    """Whether a value is a bundle of settings: no module, tensor or function, and none with modules in it."""
    if isinstance(value, _NO_SETTINGS) or callable(value):
        return False
    held = getattr(value, "__dict__", None)
    return isinstance(held, dict) and not any(isinstance(v, nn.Module) for v in held.values())


def with_entries(settings: Any, entries: Mapping[str, object]) -> Any:
    """A copy of a bundle of settings, frozen or not, with other entries; itself where it has no copy."""
    try:
        own = copy.copy(settings)
    except Exception:  # noqa: BLE001 - a class's own __copy__ or __reduce__ may raise anything
        return settings
    if own is settings or type(own) is not type(settings):  # one of a kind, such as a logger
        return settings
    vars(own).update(entries)
    return own


def read_attribute(module: nn.Module, attribute: str) -> int | None:
    """The number behind ``name``, ``settings.name`` or ``name[i]``; None where there is no whole one."""
    try:
        holder, (name, index) = _holder(module, attribute)
        value = getattr(holder, name)
        return operator.index(value if index is None else value[index])
    except (AttributeError, LookupError, TypeError, ValueError):
        return None


def write_attribute(module: nn.Module, attribute: str, value: int) -> None:
    """Set the number behind ``name``, ``settings.name`` or ``name[i]``; settings are copied first."""
    key, dot, _ = attribute.partition(".")
    if dot:
        module.__dict__[key] = with_entries(vars(module)[key], {})
    holder, (name, index) = _holder(module, attribute)
    if index is None:
        holder.__dict__[name] = value
    else:
        items = list(getattr(holder, name))
        items[index] = value
        holder.__dict__[name] = type(getattr(holder, name))(items)


def _holder(module: nn.Module, attribute: str) -> tuple[Any, tuple[str, int | None]]:
    holder: Any = module
    key, dot, name = attribute.partition(".")
    if dot:
        holder, attribute = vars(module)[key], name
    if attribute.endswith("]"):
        name, _, index = attribute[:-1].partition("[")
        return holder, (name, int(index))
    return holder, (attribute, None)
