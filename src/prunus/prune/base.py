"""What the baselines share: options read at the door, and a ranking turned into a choice."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TypeVar, final

from pydantic import Field
from torch import nn

from prunus.graph import Trace
from prunus.method import Budget, Configured, Context, Decision, OptionsT
from prunus.plan import Record
from prunus.prune.budget import LEAST_SHARE, global_choice, require_least_share, uniform_choice
from prunus.prune.scores import Normalize, Scores, normalized


class GlobalOptions(Record):
    """Options of every method that ranks all units of the network in one list.

    ``normalize``: ``mean`` divides the scores of a group by their mean, ``none`` leaves them.
    ``least_share``: every group keeps this share of its units.
    """

    normalize: Normalize = "mean"
    least_share: float = Field(default=LEAST_SHARE, ge=0, le=1)


GlobalOptionsT = TypeVar("GlobalOptionsT", bound=GlobalOptions)


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

    def require_reachable(self, network: nn.Module, trace: Trace, budget: Budget) -> None:  # noqa: ARG002  # as in Method
        """Needs a target that is met where every group keeps its ``least_share``."""
        require_least_share(trace, budget, self.options.least_share)

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
