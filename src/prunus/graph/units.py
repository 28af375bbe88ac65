"""Coupled channel groups: what can only be cut together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prunus.graph.labels import PROTECTED
from prunus.plan import BoolArray, IntArray

# Kept units by group name; groups left out stay whole.
Choice = Mapping[str, BoolArray]


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
        round_to: Kept units are a multiple of this (the whole group excepted).
        reduced: Whether a normalisation or another reduction runs over the channels.
    """

    name: str
    units: int
    axes: tuple[UnitAxis, ...]
    refused: str = ""
    min_units: int = 1
    round_to: int = 1
    reduced: bool = False

    @property
    def protected(self) -> bool:
        """Whether it stays whole by design (an output, a single unit, ignored), not by a failure."""
        return self.refused in PROTECTED
