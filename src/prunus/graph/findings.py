"""What a tracing walk notes, in atoms: the trace's costs and plans are made of it."""

from dataclasses import dataclass, field

from prunus.plan import IntArray


@dataclass(frozen=True)
class MacTerm:
    """MACs of one operation: ``constant`` times the sizes of its labelled dims."""

    module: str
    op: str
    constant: int
    dims: tuple[IntArray, ...]


@dataclass(frozen=True)
class AttributeUse:
    """A module's whole number that is the size of a dim labelled ``ids`` (None: of a fixed dim)."""

    module: str
    attribute: str
    value: int
    ids: IntArray | None


@dataclass(frozen=True)
class Reindexed:
    """A buffer whose values are positions on a dim labelled ``ids``."""

    buffer: str
    ids: IntArray


@dataclass
class Findings:
    """What a tracing walk noted, in atoms.

    ``written``: some view was given a plain number as one size of several that a cut may change.
    """

    axes: dict[tuple[str, int], IntArray] = field(default_factory=dict)
    contracted: set[tuple[str, int]] = field(default_factory=set)
    macs: list[MacTerm] = field(default_factory=list)
    attributes: list[AttributeUse] = field(default_factory=list)
    multiples: list[AttributeUse] = field(default_factory=list)
    presumed: list[AttributeUse] = field(default_factory=list)
    written: bool = False
    reindexed: list[Reindexed] = field(default_factory=list)
    same_size: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    unequal: list[tuple[AttributeUse, AttributeUse]] = field(default_factory=list)
    formulas: set[tuple[str, str]] = field(default_factory=set)
    whole: list[IntArray] = field(default_factory=list)
    reduced: list[IntArray] = field(default_factory=list)
    aligned: list[IntArray] = field(default_factory=list)
    joints: list[IntArray] = field(default_factory=list)
    unknown_ops: set[str] = field(default_factory=set)
    owners: list[tuple[int, tuple[str, int]]] = field(default_factory=list)
