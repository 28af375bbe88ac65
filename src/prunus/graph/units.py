"""Coupled channel groups: what can only be cut together."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd, lcm
from typing import Literal

import numpy as np

from prunus.graph.labels import PROTECTED
from prunus.plan import BoolArray, IntArray

# Kept units by group name; groups left out stay whole.
Choice = Mapping[str, BoolArray]

ALIGNED = 8  # channels of half precision are 16 bytes, which some kernels ask for


@dataclass(frozen=True)
class UnitAxis:
    """One dim of one tensor, and which unit of a group each of its positions belongs to.

    Attributes:
        tensor: Name of a parameter or buffer.
        dim: Its dimension.
        units: Unit of every position along the dim; -1 where the position is not this group's.
        role: ``in`` where slices consume the unit (kernel slices that read it), ``out`` where they
            produce it (filters, biases, norm scales, running statistics).
    """

    tensor: str
    dim: int
    units: IntArray
    role: Literal["in", "out"]


@dataclass(frozen=True)
class Group:
    """Channels that can only be cut together: unit ``u`` is one set of slices over all axes.

    Attributes:
        name: The layer that produces the channels (its weight's name without ``.weight``).
        units: How many units there are.
        axes: Every tensor dim the units touch.
        refused: Why it cannot be cut; empty when it can.
        min_units: Fewest units that must stay.
        round_to: Kept channels are a multiple of this on every axis (the whole group excepted).
        aligned: A multiple that kernels ask for, whatever ``round_to`` the user gave.
        reduced: Whether a normalisation or another reduction runs over the channels.
        ignored: Whether the user left out the layers that produce it, whatever else refuses it.
    """

    name: str
    units: int
    axes: tuple[UnitAxis, ...]
    refused: str = ""
    min_units: int = 1
    round_to: int = 1
    aligned: int = 1
    reduced: bool = False
    ignored: bool = False

    @cached_property
    def channels_per_unit(self) -> int:
        """Channels that a unit has on every axis, or a multiple of them: of a head, its dimension.

        Not the least on any axis: of 2 on one and 3 on another, only 1 divides both.
        """
        held = [np.unique(axis.units[axis.units >= 0], return_counts=True)[1] for axis in self.axes]
        return int(np.gcd.reduce(np.concatenate(held))) if held else 1

    @property
    def step(self) -> int:
        """Kept units are a multiple of this, so that kept channels are one of both numbers."""
        channels = lcm(self.round_to, self.aligned)
        return channels // gcd(channels, self.channels_per_unit)

    @property
    def multiple(self) -> str:
        """Who asks for a multiple of channels, for a message."""
        asked = [f"round_to={self.round_to}"] if self.round_to > 1 else []
        if self.aligned > 1:
            asked.append(f"kernels take multiples of {self.aligned}")
        return ", ".join(asked)

    def width(self, least: int) -> int:
        """The least number of units, of ``least`` or more, that may stay."""
        wanted = max(least, self.min_units, 1)
        return min(self.units, -(-wanted // self.step) * self.step)

    @property
    def protected(self) -> bool:
        """Whether it stays whole by design (an output, a single unit, ignored), not by a failure."""
        return self.refused in PROTECTED
