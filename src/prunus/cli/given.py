"""What was given on the command line, in records of related options. No torch."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import yaml

from prunus.errors import InputError
from prunus.plan import SEEDS
from prunus.yaml_text import KeyTwiceError, read_yaml

_TOO_LARGE = 2**63  # sizes are counted in 64 bits
_SHAPE = re.compile(r"[1-9][0-9]*([,x][1-9][0-9]*)*")
_IMAGE_SIZE = re.compile(r"[1-9][0-9]*([,x][1-9][0-9]*)?")


@dataclass(frozen=True)
class Subject:
    """Network and data."""

    model: str | None
    arguments: tuple[str, ...]
    weights: str | None
    data: str | None
    text: tuple[str, ...] = ()
    image_size: str | None = None


class Widths(TypedDict):
    """How many units a group keeps: at least, and a multiple of."""

    min_units: int
    round_to: int


@dataclass(frozen=True)
class Cut:
    """What may be cut, and how far; None: not said."""

    target: str | None
    options: tuple[str, ...]
    ignore: tuple[str, ...]
    min_units: int | None = None
    round_to: int | None = None

    @property
    def widths(self) -> Widths:
        """What is said, and the defaults of what is not."""
        return {"min_units": self.min_units or 1, "round_to": self.round_to or 1}


@dataclass(frozen=True)
class Training:
    """Training after the cut, and before everything else."""

    epochs: int | None
    lr: float | None
    batch_size: int | None
    distill: float | None
    train_epochs: int | None
    train_lr: float | None
    scratch_epochs: int | None
    optimizer: str | None = None
    precision: str | None = None
    layout: str | None = None


@dataclass(frozen=True)
class Where:
    """Folder and machine."""

    out: Path | None
    resume: bool
    device: str
    threads: int | None
    latency: bool


@dataclass(frozen=True)
class Scoring:
    """Where and how candidates of a search are scored."""

    engine: str
    workers: int
    address: str | None
    memory_mb: int


def read_pairs(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """``key=value`` texts as a mapping; values are read as in YAML: 3, 0.5, 1e-3, true, text.

    Raises:
        InputError: A text is no pair, or a key comes twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise InputError(f"{option} '{pair}' is not understood; write {option} key=value")
        if key in found:
            raise InputError(f"{option} '{key}' is given twice; give it once")
        try:
            found[key] = read_yaml(text)
        except KeyTwiceError as error:
            raise InputError(f"{option} '{pair}': {error.problem}; give it once") from error
        except RecursionError as error:
            raise InputError(f"{option} '{key}': its value is nested too deep; mend it") from error
        except yaml.YAMLError as error:
            quoted = '["*3"]' if text.lstrip().startswith("[") else '"*3"'
            raise InputError(
                f"{option} '{pair}' has a value that cannot be read; put texts in quotes, such as "
                f"{key}='{quoted}'"
            ) from error
    return found


def read_seeds(text: str) -> tuple[int, ...]:
    """Whole numbers, separated by commas.

    Raises:
        InputError: Something else stands there.

    >>> read_seeds("0,1,2")
    (0, 1, 2)
    """
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() for part in parts):
        raise InputError(f"--seeds '{text}' is not understood; write whole numbers such as 0,1,2")
    seeds = tuple(map(int, parts))
    if max(seeds) >= SEEDS:
        raise InputError(f"--seeds {max(seeds)}: give numbers below 2^64")
    return seeds


def read_shape(text: str) -> tuple[int, ...]:
    """Sizes of one input, separated by commas.

    Raises:
        InputError: Something else stands there.
    """
    if not _SHAPE.fullmatch(text):
        raise InputError(f"--shape '{text}' is not understood; write sizes such as 3,32,32")
    sizes = tuple(map(int, re.split("[,x]", text)))
    if max(sizes) >= _TOO_LARGE:
        raise InputError(f"--shape '{text}': {max(sizes)} is more than memory can hold; give less")
    return sizes


def read_image_size(text: str) -> tuple[int, int]:
    """Height and width, separated by a comma, or one number for both.

    Raises:
        InputError: Something else stands there.

    >>> read_image_size("32,48")
    (32, 48)
    """
    if not _IMAGE_SIZE.fullmatch(text):
        raise InputError(
            f"--image-size '{text}' is not understood; write pixels such as 224, or 32,48 (height, "
            "width)"
        )
    sides = tuple(map(int, re.split("[,x]", text)))
    return sides[0], sides[-1]


def require_sensible(option: str, count: int) -> None:
    """Refuse so many threads or processes on this machine that it would not answer any more.

    Raises:
        InputError: They are more than 64, and than eight for each core.
    """
    most = max(64, 8 * (os.cpu_count() or 1))
    if count > most:
        raise InputError(f"{option} {count}: give {most} or fewer on this machine")
