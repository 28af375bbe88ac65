"""What a candidate is scored on, and what comes out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from prunus.graph import Choice
from prunus.plan import Record, ZeroConnections

Quantity = Literal["kl", "loss", "accuracy"]


class Scoring(Record):
    """How candidates are told apart: part of what decides the plan.

    Attributes:
        images: Images of the search split that survivors are ranked on; all, if fewer.
        calibration_images: Training images for batch-norm statistics after a cut.
        fitness: ``kl``: KL(original dense || candidate) in nats at temperature 1, which needs few
            images; ``loss``: cross-entropy; ``accuracy``: share of wrong answers. Lower is better.
        first_images: Images that every candidate is seen on before the first are dropped.
        quick_images: Up to so many images candidates are seen behind ``quick_calibration_images``:
            that tells the bad from the good. Those that are left begin anew.
        quick_calibration_images: As many as ``calibration_images``: no quick looks.
        growth: Each further look ends at so many times the images of the last.
    """

    images: int = Field(default=2000, ge=2)
    calibration_images: int = Field(default=256, ge=2)
    fitness: Quantity = "kl"
    first_images: int = Field(default=128, ge=2)
    quick_images: int = Field(default=128, ge=2)
    quick_calibration_images: int = Field(default=64, ge=2)
    growth: float = Field(default=2.0, gt=1, allow_inf_nan=False)


@dataclass(frozen=True, eq=False)
class Candidate:
    """What may stay: units by group, and connections held at zero."""

    choice: Choice
    connections: tuple[ZeroConnections, ...] = ()


@dataclass(frozen=True, eq=False)
class Scored:
    """A candidate with its score.

    Attributes:
        candidate: As it was given.
        key: Hash of the network it makes; equal for candidates that make the same.
        fitness: Mean over the images seen, rounded to 1e-4; lower is better.
        kl: Mean KL(original dense || candidate), nats.
        loss: Mean cross-entropy, nats.
        top1: Share of right answers, in [0, 1].
        images: How many images it was seen on.
        complete: Whether these are all; else it was dropped on the way.
    """

    candidate: Candidate
    key: str
    fitness: float
    kl: float
    loss: float
    top1: float
    images: int
    complete: bool


def ranked(scored: Iterable[Scored]) -> list[Scored]:
    """Best first: complete ones, then those dropped later before earlier; ties by the key."""
    return sorted(scored, key=lambda s: (not s.complete, -s.images, s.fitness, s.key))
