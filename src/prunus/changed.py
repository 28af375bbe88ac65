"""What differs between what a run was begun with and what it is asked to go on with."""

from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any

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
        if name not in saved or name not in asked or saved[name] != asked[name]
    ]
    if not changed:
        return ""
    name = changed[0]
    was, now = ("absent" if name not in at else str(at[name]) or "''" for at in (saved, asked))
    same = sum(1 for _ in takewhile(lambda p: p[0] == p[1], zip(was, now, strict=False)))
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    return f"{name} was {_around(was, same)} and is {_around(now, same)}{more}"


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
