"""The contract of a pruning method, what it is given, and the registry.

A method *decides*: it looks at a network, its trace, data and a budget, and returns which units stay.
It never receives the test split (there is no field for it), never cuts, and never trains the network
it is given. A new method is one file with one ``register`` line.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

import numpy as np
from pydantic import Field, ValidationError
from torch import Tensor, nn

from prunus.compute import Compute
from prunus.data import SearchSplit, TrainSplit
from prunus.errors import BudgetError, InputError
from prunus.graph import Choice, Inputs, Trace
from prunus.plan import Plan, Rebuild, Record, ZeroConnections, complaint
from prunus.progress import Progress, Silent
from prunus.records import Cost, Front, HistoryPoint, Source

Quantity = Literal["macs", "params", "size"]
# A budget is met when the cost is at most this far below it (promise 3), or one unit would exceed it.
TOLERANCE = 0.01


class Need(StrEnum):
    """What a method cannot do without; checked before anything runs."""

    TRAIN = "train"
    SEARCH = "search"


class Budget(Record):
    """An upper limit on one quantity: a share of the dense network (at most 1), or absolute (above 1).

    >>> Budget.parse("macs=0.5").limit(1000)
    500
    """

    quantity: Quantity
    value: float = Field(gt=0, allow_inf_nan=False)

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read ``macs=0.5``, ``params=1e6`` or ``size=2.5e6`` (bytes).

        Raises:
            InputError: Unknown quantity, or a value that is no positive number.
        """
        quantity, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if quantity not in ("macs", "params", "size") or not 0 < number < float("inf"):
            raise InputError(
                f"target '{text}' is not understood; write macs=0.5 (a share of the dense network) "
                "or an absolute limit such as params=500000; quantities are macs, params, size (bytes)"
            )
        return cls(quantity=quantity, value=number)

    def limit(self, dense: int) -> int:
        """The largest allowed value, given the dense network's."""
        # As written: 0.29 of 100 is 29, though 0.29 * 100 is a little less in binary.
        return int(Fraction(repr(self.value)) * dense) if self.value <= 1 else int(self.value)

    def measure(self, trace: Trace, choice: Choice) -> int:
        """What a choice costs in this quantity; size is that of the model file, in bytes."""
        if self.quantity == "macs":
            return trace.macs(choice)
        return trace.params(choice) if self.quantity == "params" else trace.size_bytes(choice)

    def read(self, cost: Cost) -> int:
        """This quantity of a cost.

        Raises:
            BudgetError: The cost does not know the size.
        """
        if self.quantity == "size" and cost.size_bytes is None:
            raise BudgetError("the size of the network was not measured; measure it with its cost")
        known = {"macs": cost.macs, "params": cost.params, "size": cost.size_bytes or 0}
        return known[self.quantity]

    def has_room(self, trace: Trace, choice: Choice) -> bool:
        """Whether a step more of some group, to its next legal width, would still be within the limit."""
        limit = self.limit(self.measure(trace, {}))
        for group in trace.cuttable:
            keep = choice.get(group.name, np.ones(group.units, dtype=bool))
            count = group.width(int(keep.sum()) + 1) - int(keep.sum())
            wider = keep | np.isin(np.arange(keep.size), np.flatnonzero(~keep)[:count])
            if count and self.measure(trace, {**choice, group.name: wider}) <= limit:
                return True
        return False

    def require(self, trace: Trace, choice: Choice) -> None:
        """Refuse a choice above the budget.

        Raises:
            BudgetError: The choice costs more than the limit.
        """
        self.require_within(self.measure(trace, choice), self.measure(trace, {}))

    def require_within(self, cost: int, dense: int) -> None:
        """Refuse a cost above the budget of a network that has ``dense``.

        Raises:
            BudgetError: It is above the limit.
        """
        limit = self.limit(dense)
        if cost > limit:
            raise BudgetError(
                f"target {self.quantity}={self.value:g} allows {limit}, the choice costs {cost}"
            )


@dataclass(frozen=True)
class Context:
    """All that a method may look at.

    Attributes:
        network: To cut; the method's own copy.
        trace: Of the network.
        budget: For the network that comes out.
        seed: Of all random draws.
        train: For weights and statistics.
        search: For decisions.
        device: ``"cpu"`` or ``"cuda"``.
        progress: Told of everything.
        original: The dense network before all cuts, where ``network`` is not it.
        source: Builds the dense network in another process, where that is known.
        plans: Cuts that led from the dense network to ``network``.
        folder: Where a search keeps what it knows, so that a killed one goes on; None: nowhere.
        compute: Where and how a search scores its candidates.
        fallback_pieces: Ids that a tokenizer needs to spell any text; empty where there is none.
        done: Share of the recipe's rounds that are over with this one, in (0, 1]; for schedules.
    """

    network: nn.Module
    trace: Trace
    budget: Budget
    seed: int
    train: TrainSplit | None = None
    search: SearchSplit | None = None
    device: str = "cpu"
    progress: Progress = field(default_factory=Silent)
    original: nn.Module | None = None
    source: Source | None = None
    plans: tuple[Plan, ...] = ()
    folder: Path | None = None
    compute: Compute = field(default_factory=Compute)
    fallback_pieces: frozenset[int] = frozenset()
    done: float = 1.0


@dataclass(frozen=True)
class Decision:
    """What a method decided, and how it came to it.

    Attributes:
        choice: Units that stay, by group.
        connections: Held at zero.
        edits: Modules and tables to replace, in place of a choice: the two do not go together.
        tensors: Values of what ``edits`` make anew, by name in the network that comes out.
        history: Of a search.
        evaluations: Different networks scored.
        front: Other networks that the same search found, for other budgets.
        notes: Remarks for the record.
        earlier_seconds: That its search took in processes before this one, which were killed.
    """

    choice: Choice
    connections: tuple[ZeroConnections, ...] = ()
    edits: tuple[Rebuild, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    history: tuple[HistoryPoint, ...] = ()
    evaluations: int = 0
    front: Front | None = None
    notes: tuple[str, ...] = ()
    earlier_seconds: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether it was about units and keeps them all."""
        return bool(self.choice) and all(keep.all() for keep in self.choice.values())


class Method(ABC):
    """A way to decide what stays.

    Attributes:
        name: Lower case, stable: used in recipes and on the command line.
        summary: One line for ``prunus methods``.
        needs: What the context must hold.
        edits: Whether it replaces modules or tables instead of choosing units.
        targets: Quantities that it can lower to a target.
        null: Whether it is a null baseline, shown as such in every report.
        reinitialize: Whether the cut network starts from fresh weights (the small net from scratch).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    edits: ClassVar[bool] = False
    targets: ClassVar[frozenset[Quantity]] = frozenset(get_args(Quantity))
    null: ClassVar[bool] = False
    reinitialize: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        if options:
            raise InputError(f"method '{self.name}' has no option '{next(iter(options))}'")

    @property
    def sizes_itself(self) -> bool:
        """Whether its options say how small the network gets, so that no target is needed."""
        return False

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that options name and whose contents decide: a run is resumed with the same alone."""
        return ()

    def require_applicable(self, network: nn.Module, inputs: Inputs) -> None:  # noqa: B027  # may be left
        """Refuse a network without what the method works on, before anything is trained.

        Raises:
            PrunusError: It has none.
        """

    def require_uncut(self, network: nn.Module) -> None:  # noqa: B027  # may be left
        """Refuse to follow a cut of units where options fit the network as it is before.

        Raises:
            InputError: They do.
        """

    def require_repeatable(self, rounds: int) -> None:  # noqa: B027  # may be left
        """Refuse several rounds, each on what the one before left, before anything is trained.

        Raises:
            InputError: It is done once; says why, and the recipe what to do.
        """

    def require_reachable(self, network: nn.Module, trace: Trace, budget: Budget) -> None:  # noqa: B027  # may be left
        """Refuse a target that options and shapes put out of reach, before anything is trained.

        Least widths of groups need no such check: they are seen in the trace.

        Raises:
            BudgetError: It is.
        """

    @abstractmethod
    def decide(self, context: Context) -> Decision:
        """Choose the units that stay, within the budget."""


class NoOptions(Record):
    """For a method that has nothing to set."""


OptionsT = TypeVar("OptionsT", bound=Record)


class Configured(Method, Generic[OptionsT]):
    """A method whose options are a record, validated at construction.

    Attributes:
        options_type: Names, types, ranges and defaults; set by every concrete class.
        options: The values in use.
    """

    options_type: type[OptionsT]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options: OptionsT = _read(self.name, options, self.options_type)


_METHODS: dict[str, type[Method]] = {}


def register(*methods: type[Method]) -> None:
    """Add methods by their names; a taken name is refused."""
    for method in methods:
        if method.name in _METHODS:
            raise ValueError(f"method name '{method.name}' is taken")
        _METHODS[method.name] = method


def method_names() -> list[str]:
    """Names of all registered methods."""
    return sorted(_METHODS)


def method_class(name: str) -> type[Method]:
    """The class registered under a name.

    Raises:
        InputError: No such method; the message lists those there are.
    """
    if name not in _METHODS:
        raise InputError(f"no method '{name}'; methods are {', '.join(method_names())}")
    return _METHODS[name]


def make_method(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """Build a method from its name and options, validated now, before any compute."""
    return method_class(name)(**(options or {}))


def train_split(context: Context, method: Method) -> TrainSplit:
    """The training split of a context.

    Raises:
        InputError: It has none.
    """
    if context.train is None:
        raise InputError(f"method '{method.name}' needs training data; give the context train=")
    return context.train


def search_split(context: Context, method: Method) -> SearchSplit:
    """The search split of a context.

    Raises:
        InputError: It has none.
    """
    if context.search is None:
        raise InputError(f"method '{method.name}' needs search data; give the context search=")
    return context.search


def require_layers(ignore: Iterable[str], paths: Iterable[str], purpose: str) -> None:
    """Refuse a glob of an option ``ignore`` that names no layer: it is misspelled.

    Args:
        ignore: The globs.
        paths: Of the layers that may be ignored.
        purpose: What is done to the others, for the message.

    Raises:
        InputError: One matches none.
    """
    known = list(paths)
    for pattern in ignore:
        if not any(fnmatchcase(path, pattern) for path in known):
            some = ", ".join(known[:5]) or "none"
            raise InputError(
                f"ignore: '{pattern}' matches no layer to {purpose}; layers are {some}"
                f"{', ...' if len(known) > 5 else ''}"
            )


def _read(method: str, options: Mapping[str, Any], into: type[OptionsT]) -> OptionsT:
    known = ", ".join(sorted(into.model_fields)) or "none"
    for name in options:
        if name not in into.model_fields:
            raise InputError(f"method '{method}' has no option '{name}'; its options: {known}")
    try:
        return into.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        problem = complaint(first)
        if not first["loc"]:
            raise InputError(f"options of method '{method}': {problem}") from error
        name = str(first["loc"][0])
        raise InputError(
            f"option {name}={options.get(name)!r} of method '{method}': {problem}"
        ) from error
