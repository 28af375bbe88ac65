"""What differs between what a run was begun with and what it is asked to go on with."""

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any

_NUMBER = re.compile(
    r"[-+]?([0-9]{1,20}(\.[0-9]{0,20})?|\.[0-9]{1,20})(?P<power>[eE][-+]?[0-9]{1,2})?"
)
_FRESH = "scratch"
_OF_FRESH = ("scratch_epochs", "scratch_lr")
_SHOWN = 60  # characters of a value
_BEFORE = 8  # of them, ahead of the first that differs


def told_change(saved: Mapping[str, object], asked: Mapping[str, object]) -> str:
    """The first value that differs, and how many do: ``seed was 0 and is 1 (and 2 more)``.

    Long values are shown where they part: two folders may differ in their last letter.

    Args:
        saved: What was kept, by name.
        asked: What is asked for, in the order in which it is looked at.

    Returns:
        Words for an error; empty where all agree.
    """
    names = dict.fromkeys((*asked, *saved))
    changed = [
        name
        for name in names
        if name not in saved or name not in asked or not _are_same(saved[name], asked[name])
    ]
    if not changed:
        return ""
    name = changed[0]
    was, now = ("absent" if name not in at else str(at[name]) or "''" for at in (saved, asked))
    same = sum(1 for _ in takewhile(lambda p: p[0] == p[1], zip(was, now, strict=False)))
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    return f"{name} was {_around(was, same)} and is {_around(now, same)}{more}"


def _are_same(one: object, other: object) -> bool:
    """Whether two values are one, also where a number is written as 1e-3 and as 0.001."""
    if one == other:
        return True
    if not (isinstance(one, str) and isinstance(other, str)):
        return False
    numbers = _NUMBER.fullmatch(one), _NUMBER.fullmatch(other)
    # Without an exponent 2.1 and 2.10 may be versions.
    powers = any(number and number["power"] for number in numbers)
    return all(numbers) and powers and float(one) == float(other)


def without_idle(flat: Mapping[str, str]) -> dict[str, str]:
    """Flat steps without the settings that have no effect in them: of fresh weights where none are.

    Args:
        flat: As ``flatten`` gives it, of a recipe or what it is in.
    """
    fresh = any(
        (name.endswith(".prune.method") and (method == _FRESH or ".py:" in method))
        or ".student." in name
        for name, method in flat.items()
    )
    return {n: v for n, v in flat.items() if fresh or not n.endswith(_OF_FRESH)}


def _around(text: str, same: int) -> str:
    """A value around its first difference, after ``same`` characters, to another one."""
    first = max(0, same - _BEFORE) if len(text) > _SHOWN else 0
    last = first + _SHOWN
    return f"{'...' if first else ''}{text[first:last]}{'...' if len(text) > last else ''}"


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as ``steps[1].train.lr`` to text."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flatten(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple) and value:
        for index, inner in enumerate(value):
            yield from flatten(inner, f"{path}[{index}]")
    else:
        yield path, str(value)
