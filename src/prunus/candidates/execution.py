"""Number formats and layouts that candidates can be scored in."""

from dataclasses import dataclass
from typing import Literal, get_args

from prunus.train.config import Layout, Precision
from prunus.train.precision import Execution

ScoringPrecision = Literal[Precision, "int7", "int8"]
WEIGHT_BITS = {"int7": 7, "int8": 8}
"""Of convolutions that multiply bytes, by precision."""


@dataclass(frozen=True)
class ScoringExecution(Execution):
    """How the forward passes of a candidate run.

    Attributes:
        weight_bits: Convolutions multiply bytes, with weights of so many bits; ``precision`` is that of
            the rest. 0: they don't.
    """

    weight_bits: int = 0

    @classmethod
    def of(cls, precision: ScoringPrecision, layout: Layout) -> "ScoringExecution":
        """By the names that settings give."""
        match precision:
            case "int7" | "int8":
                return cls("float32", layout, weight_bits=WEIGHT_BITS[precision])
            case _:
                return cls(precision, layout)

    @classmethod
    def named(cls, name: str) -> "ScoringExecution":
        """By its own name."""
        return _ALL[name]

    @property
    def name(self) -> str:
        """Such as ``int8 channels_last``."""
        return f"{f'int{self.weight_bits}' if self.weight_bits else self.precision} {self.layout}"


_ALL = {
    execution.name: execution
    for precision in (*get_args(Precision), *WEIGHT_BITS)
    for layout in get_args(Layout)
    for execution in [ScoringExecution.of(precision, layout)]
}
