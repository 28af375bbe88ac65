"""The reference of recipes: every key of every step, from the records that read them."""

import inspect
import re
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from prunus.data import Cleaning, TextOptions
from prunus.plan import Record
from prunus.recipe import Recipe
from prunus.recipe.steps import STEPS

_KEY = re.compile(r"    (\w+): (.*)")
_WORDS: dict[Any, str] = {bool: "true, false", int: "whole number", float: "number", str: "text"}
_LISTS = (list, tuple)


def reference(record: type[Record]) -> str:
    """A line a key: what may stand there, what does by default, what it means."""
    meanings = _meanings(record)
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, field in record.model_fields.items():
        if name == "step":  # told by the name of the step
            continue
        lines.append(
            f"| `{name}` | {_values(field.annotation)} | {_default(field)} | {meanings[name]} |"
        )
    return "\n".join(lines)


def _meanings(record: type[Record]) -> dict[str, str]:
    """The sections ``Attributes`` of a record's docstring and of those it extends."""
    found: dict[str, str] = {}
    for kind in reversed(record.__mro__):
        _, _, section = inspect.cleandoc(kind.__dict__.get("__doc__") or "").partition(
            "Attributes:\n"
        )
        name = ""
        for line in section.splitlines():
            key = _KEY.fullmatch(line)
            if key:
                name, found[key[1]] = key[1], key[2]
            elif line.strip() and name:
                found[name] += f" {line.strip()}"
    return {name: text.replace("``", "`").replace("|", "\\|") for name, text in found.items()}


def _values(kind: Any) -> str:
    """What may stand at a key, in words of YAML."""
    origin = get_origin(kind)
    if origin is Literal:
        return ", ".join(_yaml(value) for value in get_args(kind))
    if origin in (Union, UnionType):
        return " or ".join(_values(one) for one in get_args(kind) if one is not NoneType)
    if origin in _LISTS:
        return "list"
    if origin is dict or (isinstance(kind, type) and issubclass(kind, Record)):
        return "mapping"
    return _WORDS.get(kind, "text")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value in (None, "", (), {}) or isinstance(value, Record):
        return "none"
    return _yaml(value)


def _yaml(value: Any) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


TABLES: dict[str, Callable[[], str]] = {
    f"recipe_{name}": lambda record=record: reference(record)  # type: ignore[misc]
    for name, record in {
        "keys": Recipe,
        **STEPS,
        "text": TextOptions,
        "cleaning": Cleaning,
    }.items()
}
