"""Height and width of the inputs, as a user writes them."""

import re
from pathlib import Path

from prunus.errors import InputError

_SIZED = re.compile(r"(.+)@([0-9]+)(?:x([0-9]+))?")  # DIR@224 or DIR@HEIGHTxWIDTH
_LARGEST = 8192


def image_sides(size: object) -> tuple[int, int]:
    """Height and width.

    Raises:
        InputError: The size is no whole number above 0, and no pair of them.
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    numbers = [side for side in sides if isinstance(side, int) and not isinstance(side, bool)]
    if len(sides) != 2 or len(numbers) != 2:
        raise InputError(
            f"image_size is {size!r}: use a whole number of pixels such as 224, or (height, width)"
        )
    if min(numbers) < 1:
        raise InputError(f"image_size is {size}: use at least 1")
    if max(numbers) > _LARGEST:
        raise InputError(f"image_size is {size}: use at most {_LARGEST}")
    return numbers[0], numbers[1]


def split_size(text: str) -> tuple[str, tuple[int, int] | None]:
    """The folder and the image size that stand in ``DIR@224`` or ``DIR@32x48``.

    A folder whose own name ends so is meant as it stands.
    """
    found = _SIZED.fullmatch(text)
    if found is None or Path(text).is_dir():
        return text, None
    height, width = found[2], found[3] or found[2]
    return found[1], (int(height), int(width))


def sized_suffix(sides: tuple[int, int]) -> str:
    """What ``split_size`` reads as this image size."""
    height, width = sides
    return f"@{height}" if height == width else f"@{height}x{width}"
