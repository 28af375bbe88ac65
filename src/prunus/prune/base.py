"""What the baselines share: options read at the door, and a ranking turned into a choice."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

from pydantic import Field, ValidationError

from prunus.data import SearchSplit, TrainSplit
from prunus.errors import InputError
from prunus.method import Context, Decision, Method
from prunus.plan import Record
from prunus.prune.budget import LEAST_SHARE, global_choice, uniform_choice
from prunus.prune.scores import Normalize, Scores, normalized


class NoOptions(Record):
    """For a method that has nothing to set."""


class GlobalOptions(Record):
    """Options of every method that ranks all units of the network in one list.

    ``normalize``: ``mean`` divides the scores of a group by their mean, ``none`` leaves them.
    ``least_share``: every group keeps this share of its units.
    """

    normalize: Normalize = "mean"
    least_share: float = Field(default=LEAST_SHARE, ge=0, le=1)


OptionsT = TypeVar("OptionsT", bound=Record)
GlobalOptionsT = TypeVar("GlobalOptionsT", bound=GlobalOptions)


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


@dataclass(frozen=True)
class Ranked:
    """Scores of all units that can be cut, higher stays longer, and remarks for the record."""

    scores: Scores
    notes: tuple[str, ...] = ()


class UniformRanking(Configured[OptionsT]):
    """Ranks units inside their groups; every group keeps the same share."""

    @abstractmethod
    def rank(self, context: Context) -> Ranked:
        """Score all units; compared inside a group only."""

    @final
    def decide(self, context: Context) -> Decision:
        """Keep the same share of every group, best units first."""
        ranked = self.rank(context)
        choice = uniform_choice(context.trace, context.budget, ranked.scores)
        return Decision(choice=choice, notes=ranked.notes)


class GlobalRanking(Configured[GlobalOptionsT]):
    """Ranks all units of the network in one list."""

    @abstractmethod
    def rank(self, context: Context) -> Ranked:
        """Score all units; ``normalize`` is applied after."""

    @final
    def decide(self, context: Context) -> Decision:
        """Keep the best units of the network."""
        ranked, share = self.rank(context), self.options.least_share
        scores = normalized(ranked.scores, self.options.normalize)
        choice = global_choice(context.trace, context.budget, scores, least_share=share)
        return Decision(choice=choice, notes=ranked.notes)


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


def _read(method: str, options: Mapping[str, Any], into: type[OptionsT]) -> OptionsT:
    known = ", ".join(sorted(into.model_fields)) or "none"
    for name in options:
        if name not in into.model_fields:
            raise InputError(f"method '{method}' has no option '{name}'; its options: {known}")
    try:
        return into.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        problem = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise InputError(f"options of method '{method}': {problem}") from error
        name = str(first["loc"][0])
        raise InputError(
            f"option {name}={options.get(name)!r} of method '{method}': {problem}"
        ) from error
