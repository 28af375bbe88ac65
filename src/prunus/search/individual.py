"""What evolution works on: a genome with its scores."""

from dataclasses import dataclass
from typing import Generic, TypeVar

Genome = TypeVar("Genome")


@dataclass(frozen=True, eq=False)
class Individual(Generic[Genome]):
    """A genome with what is known of it.

    Attributes:
        genome: What operators change; search never looks inside.
        values: One score per objective; lower is better.
        key: Equal for genomes that mean the same (one phenotype).
    """

    genome: Genome
    values: tuple[float, ...]
    key: str
