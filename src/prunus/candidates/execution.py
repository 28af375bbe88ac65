"""Number formats and layouts that candidates can be scored in."""

from dataclasses import dataclass
from typing import Literal, get_args

from prunus.train.config import Layout, Precision
from prunus.train.precision import Execution

ScoringPrecision = Literal[Precision, "int8"]


@dataclass(frozen=True)
class ScoringExecution(Execution):
    """How the forward passes of a candidate run.

    Attributes:
        int8: Convolutions multiply bytes; ``precision`` is that of the rest.
    """

    int8: bool = False

    @classmethod
    def of(cls, precision: ScoringPrecision, layout: Layout) -> "ScoringExecution":
        """By the names that settings give."""
        if precision == "int8":
            return cls("float32", layout, int8=True)
        return cls(precision, layout)

    @classmethod
    def named(cls, name: str) -> "ScoringExecution":
        """By its own name."""
        return _ALL[name]

    @property
    def name(self) -> str:
        """Such as ``int8 channels_last``."""
        return f"{'int8' if self.int8 else self.precision} {self.layout}"


_ALL = {
    execution.name: execution
    for precision in (*get_args(Precision), "int8")
    for layout in get_args(Layout)
    for execution in [ScoringExecution.of(precision, layout)]
}
